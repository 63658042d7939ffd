"""LightX2V's adapters for the conformance tests, one per trainer."""

from tiny_lightx2v import EXAMPLES, PROMPTS, Run, built, config


class VideoDmd:
    name = "video_dmd"

    def stock(self):
        example, stock, _ = EXAMPLES[self.name]
        return Run(built(stock, config(example)))

    def amd(self, options, reward, order=None):
        example, _, ours = EXAMPLES[self.name]
        prompts = PROMPTS if order is None else [PROMPTS[row] for row in order]
        return Run(built(ours, config(example, prompts, {**options, "reward": reward})), order)


class Dmd(VideoDmd):
    name = "dmd"


class VideoArDmd(VideoDmd):
    name = "video_ar_dmd"


class VideoPhasedDmd(VideoDmd):
    name = "video_phased_dmd"
