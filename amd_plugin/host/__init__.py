"""The reference host: a distillation trainer on accelerate that knows its objectives through the hook contract only."""
