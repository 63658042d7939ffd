"""Scenes: prompts of GenEval's six kinds, coloured pictures composed of emoji, and judges that learned to read them.

`grammar` holds the prompts as data, `sprites` and `drawing` make the pictures, `detector` and `verdict` read them, and `task`
is what the host asks. The drawings are Twemoji's (CC BY 4.0), from the extra ``scenes``.
"""
