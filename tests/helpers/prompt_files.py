"""Seven prompts, and a folder of pictures that have them as captions."""

from PIL import Image

RECORDS = [{"prompt": f"a fox, number {index}", "style": f"s{index % 2}"} for index in range(7)]
PROMPTS = [record["prompt"] for record in RECORDS]


def image_folder(path, count=7, size=20):
    path.mkdir()
    lines = ["file_name,prompt,style"]
    for index in range(count):
        Image.new("RGB", (size, size), (index * 30, 0, 255 - index * 30)).save(path / f"{index}.png")
        lines.append(f'{index}.png,"a fox, number {index}",s{index % 2}')
    (path / "metadata.csv").write_text("\n".join(lines))
    return path
