"""Pictures and videos as files: PNG, JPEG, GIF by Pillow; MP4 by the ffmpeg that comes with imageio-ffmpeg."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from amd_plugin.atomic import replaced_file
from amd_plugin.disk import REMEDIES
from amd_plugin.errors import MissingDependency


def check_mp4() -> None:
    """Raises MissingDependency unless MP4 files can be written."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        message = "writing MP4 needs imageio-ffmpeg. Install it: pip install 'imageio-ffmpeg>=0.5'"
        raise MissingDependency(message) from error


def write(path: Path, sample: Tensor, fps: int) -> Path:
    """Writes one sample as a picture or a video. The file is either complete or absent.

    Args:
        path: path of the file; its suffix decides the format, ``.png`` for pictures and ``.gif`` for videos by default.
        sample: media [C, (T,) H, W] in [0, 1], with 1 or 3 channels.
        fps: frames per second of a video.

    Returns:
        The path of the file written.

    Raises:
        NotWritten: if the file cannot be written.
    """
    video = sample.dim() == 4
    target = path if path.suffix in (".png", ".jpg", ".mp4") else path.with_name(f"{path.name}.{'gif' if video else 'png'}")
    frames = _frames(sample if video else sample.unsqueeze(1))
    with replaced_file(target, durable=False) as draft:
        if target.suffix == ".mp4":
            _write_mp4(draft, frames, fps)
        else:
            moving = {
                "save_all": True,
                "append_images": [Image.fromarray(f) for f in frames[1:]],
                "duration": 1000 / fps,
                "loop": 0,
            }
            still = {"quality": 95} if target.suffix == ".jpg" else {}
            Image.fromarray(frames[0]).save(draft, **(moving if target.suffix == ".gif" else still))
    return target


def _frames(video: Tensor) -> Sequence[np.ndarray]:
    """T frames [H, W, 3] of bytes."""
    pixels = (video.detach().cpu().float().clamp(0, 1) * 255).round().byte().expand(3, -1, -1, -1)
    return list(pixels.permute(1, 2, 3, 0).contiguous().numpy())


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Writes H.264, which needs even sides for most players; odd sides are scaled by one pixel."""
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    wanted = ["-vf", f"scale={width + width % 2}:{height + height % 2}", "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *given, *wanted, str(path)]
    # imageio-ffmpeg's own writer does not look whether it succeeded: a full disk left half a video, in silence.
    done = subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True)  # noqa: S603
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        too_large = done.returncode == -signal.SIGXFSZ
        code = errno.EFBIG if too_large else next((c for c in REMEDIES if os.strerror(c) in said), errno.EIO)
        raise OSError(code, os.strerror(code), str(path))
