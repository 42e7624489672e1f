"""A deck of slides, .pptx, of the figures and tables that `plotting.FigureBook` has written; light or dark."""

import functools
import io
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared_utils.device import write_whole

INK = "#222222"  # of text, on slides and in figures
SLIDE = (13.333, 7.5)  # inches
SLIDE_HEAD, SLIDE_FIGURE_HEIGHT = 1.14, 6.3  # inches; the figure's smallest text is 12.25 points on the slide
TABLE_WIDTH, TABLE_HEIGHT = 12.3, 5.85  # inches
NO_TABLE_STYLE = "{2D5ABB26-0587-4C30-8999-92F81FD0307C}"  # PowerPoint's own name of "No Style, No Grid"


def write_deck(
    path: str | os.PathLike,
    books: Sequence[dict],
    headlines: Sequence[str] | None = None,
    title: str = "",
    theme: str = "light",
) -> Path:
    """Write one 16:9 .pptx of the figures and tables of `books` and return its path.

    A book is what `plotting.FigureBook.contents` returns. It becomes a title slide, with its headline where there is
    one, then a figure or a table a slide: its name as the title, its caption below. A table is a native one and goes on
    to the next slide where it is long. Settings stand in the notes, pictures and tables have alt texts. With a `title`
    the deck begins with it and the list of the notebooks.

    Where `theme` is "dark", the slides and figures are light on dark (images keep their colour maps) and `_dark` is
    added to the file's name. Raises ValueError for another theme, for a book without figures, and for a dark deck of
    figures that were saved before there were such.
    """
    from pptx import Presentation
    from pptx.dml.color import RGBColor
    from pptx.oxml.ns import qn
    from pptx.util import Inches

    if theme not in ("light", "dark"):
        raise ValueError(f'The theme of slides is "light" or "dark", not {theme!r}; for example: THEME=dark')
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(SLIDE[0]), Inches(SLIDE[1])
    deck.core_properties.title, deck.core_properties.author = title or books[0]["heading"], ""
    master = deck.slide_master
    master.background.fill.solid()
    master.background.fill.fore_color.rgb = RGBColor.from_string(_slide_colour("#ffffff", theme))
    if theme == "dark":  # what a user adds to the deck is light on dark, too
        for role, colour in {"bg1": "dk1", "tx1": "lt1", "bg2": "dk2", "tx2": "lt2"}.items():
            master.element.find(qn("p:clrMap")).set(role, colour)
    if title:
        names = [book["heading"].split(": ")[0] for book in books]
        _write_notes(_add_title(deck, title, "\n".join(names)), [book["name"] for book in books])
    for book, headline in zip(books, headlines or [""] * len(books), strict=True):
        _add_book(deck, book, theme, headline)
    path = Path(path)
    if theme == "dark":
        path = path.with_name(f"{path.stem}_dark{path.suffix}")
    content = io.BytesIO()
    deck.save(content)
    with write_whole(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return path


def _add_book(deck, book: dict, theme: str, headline: str) -> None:
    """Add the title, with headline and data sets below it, then a slide for each figure and part of a table."""
    from pptx.util import Inches

    items = book["items"]
    if not items:
        raise ValueError(f"{book['folder']} holds no figure yet; run {book['name']} first.")
    marks = "; ".join(dict.fromkeys(item["mark"] for item in items if item["mark"]))
    below = [line[:1].upper() + line[1:] for line in (headline, marks) if line]
    slide = _add_title(deck, book["heading"], "\n".join(below))
    _write_notes(slide, [book["name"], headline, marks, _settings_line(items[-1])])
    for item in items:
        title, caption = _title_and_caption(item)
        told = ". ".join(text for text in (title, caption, item["mark"]) if text)
        if item["kind"] == "figure":
            slide = _add_slide(deck, title, caption, item)
            width, height = SLIDE_FIGURE_HEIGHT * 16 / 9, SLIDE_FIGURE_HEIGHT
            box = ((SLIDE[0] - width) / 2, SLIDE[1] - height - 0.04, width, height)
            path = book["folder"] / f"{item['file']}.png"
            if theme == "dark" and "images" not in item:
                raise ValueError(f"{path} is from before there were dark slides; run {book['name']} again.")
            picture = str(path)
            if theme == "dark":
                boxes = tuple(map(tuple, item["images"]))
                picture = io.BytesIO(_dark_picture(path, path.stat().st_mtime_ns, boxes))
            shape = slide.shapes.add_picture(picture, *map(Inches, box))
            shape._element.nvPicPr.cNvPr.set("descr", told)
            continue
        parts, size = _split_table(item["rows"])
        for number, part in enumerate(parts, 1):
            numbered = title if len(parts) == 1 else f"{title} ({number} of {len(parts)})"
            _add_table(_add_slide(deck, numbered, caption, item), part, size, told, item["mark"], theme)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width in inches of a line of text of `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def fit_mark(mark: str, width: float, size: int) -> str:
    """Return the data set's name, shortened to `width` inches at its start: at its end it may say "demo data"."""
    while len(mark) > 1 and text_width(mark, size) > width:
        mark = "…" + mark[1 + max(1, len(mark) // 50) :]
    return mark


def _fit_lines(text: str, width: float, choices: Sequence[tuple[int, int]], weight: str = "normal") -> tuple[str, int]:
    """Return the text and the first size of `choices` (points, lines) in which it fits lines of `width` inches.

    Where none does, it is shortened to fit the last.
    """
    for size, n_lines in choices:
        room = width if n_lines == 1 else n_lines * width / 1.1  # lines end at words
        if text_width(text, size, weight) <= room:
            return text, size
    return shorten(text, int(len(text) * room / text_width(text, size, weight))), size


def _title_and_caption(item: dict) -> tuple[str, str]:
    """Return what a slide says first, and the line below it; a caption that begins with the name needs no other title.

    A name such as "confusion, CNN 1-D" tells slides apart that share a caption, "test fold 1, seed 0".
    """
    name, caption = item["name"], item["caption"].strip()
    if re.match(rf"{re.escape(name)}\b", caption, re.IGNORECASE):
        name, caption = caption, ""
    return name[:1].upper() + name[1:], caption[:1].upper() + caption[1:]


def _settings_line(item: dict) -> str:
    return " · ".join(f"{name} = {value}" for name, value in item["settings"].items())


def _write_notes(slide, lines: Sequence[str]) -> None:
    from pptx.util import Pt

    frame = slide.notes_slide.notes_text_frame
    frame.text = "\n".join(line for line in lines if line)
    for paragraph in frame.paragraphs:
        paragraph.font.size = Pt(12)


def _add_title(deck, title: str, below: str):
    """Add a slide with a large title and lines below it, in the largest type in which they fit."""
    from pptx.util import Pt

    slide = deck.slides.add_slide(deck.slide_layouts[0])
    lines = below.splitlines()
    many = len(lines) > 3  # the list of the notebooks
    title, size = _fit_lines(title, 11.3, [(40, 1), (36, 2), (28, 2), (24, 2), (20, 3)], "bold")
    _place(slide.shapes.title, (0.9, 0.5 if many else 1.9, 11.5, 1.35), title, size, bold=True, at="BOTTOM")
    fitted = [_fit_lines(line, 11.3, [(size, 1 if many else 2) for size in (22, 20, 18, 16, 14)]) for line in lines]
    text, size = "\n".join(text for text, _ in fitted), min([size for _, size in fitted], default=22)
    _place(slide.placeholders[1], (0.9, 2.2 if many else 3.6, 11.5, 4.6 if many else 3), text, size, at="TOP")
    for paragraph in slide.placeholders[1].text_frame.paragraphs:
        paragraph.space_after = Pt(8)
    return slide


def _add_slide(deck, title: str, caption: str, item: dict):
    """Add a slide with a title and, where there is one, a caption below it; all that is known stands in the notes."""
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    if caption:
        shown, size = _fit_lines(title, 12.3, [(26, 1), (22, 1), (18, 1)], "bold")
        _place(slide.shapes.title, (0.4, 0.06, 12.53, 0.48), shown, size, bold=True)
        shown, size = _fit_lines(caption, 12.3, [(16, 2), (14, 2), (12, 3)])
        _place(slide.shapes.add_textbox(0, 0, 0, 0), (0.4, 0.54, 12.53, 0.6), shown, size, at="TOP")
    else:
        shown, size = _fit_lines(title, 12.3, [(26, 1), (24, 2), (20, 2), (16, 3)], "bold")
        _place(slide.shapes.title, (0.4, 0.06, 12.53, 0.48 if size == 26 else 1.05), shown, size, bold=True)
    _write_notes(slide, [item["name"], item["caption"], item["mark"], _settings_line(item)])
    return slide


def _place(
    shape, box: tuple[float, float, float, float], text: str, size: int, bold: bool = False, at: str = "MIDDLE"
) -> None:
    """Put a placeholder at (left, top, width, height) inches with `text` in it, at its "TOP", "MIDDLE" or "BOTTOM"."""
    from pptx.enum.dml import MSO_THEME_COLOR
    from pptx.enum.text import MSO_ANCHOR, MSO_AUTO_SIZE, PP_ALIGN
    from pptx.util import Inches, Pt

    shape.left, shape.top, shape.width, shape.height = map(Inches, box)
    frame = shape.text_frame
    frame.text, frame.word_wrap, frame.auto_size = text, True, MSO_AUTO_SIZE.NONE
    frame.vertical_anchor, frame.margin_top, frame.margin_bottom = MSO_ANCHOR[at], 0, 0
    for paragraph in frame.paragraphs:
        paragraph.alignment, paragraph.space_before = PP_ALIGN.LEFT, Pt(0)
        paragraph.font.size, paragraph.font.bold = Pt(size), bold
        paragraph.font.color.theme_color = MSO_THEME_COLOR.TEXT_1


def _row_height(size: float, n_lines: int = 1) -> float:
    return 1.2 * size / 72 * n_lines + 0.1


def _split_table(rows: list[list[str]]) -> tuple[list[tuple[list[list[str]], list[float]]], int]:
    """Return parts (rows with header, widths in inches) that fit a slide each, and the size of their type in points.

    One slide with cells in full comes first, then smaller type, then shorter cells, then several slides.
    """
    choices = []
    for longest in (100, 60, 40):
        cells = [[shorten(cell, longest) for cell in row] for row in rows]
        for column, name in enumerate(cells[0]):
            room = max([12, *(len(row[column]) for row in cells[1:])])
            cells[0][column] = "\n".join(textwrap.wrap(name, room, break_long_words=False, break_on_hyphens=False))
        ems = [
            max(text_width(line, 72, "bold" if not number else "normal")
                for number, row in enumerate(cells) for line in row[column].split("\n"))
            for column in range(len(rows[0]))
        ]  # fmt: skip
        choices += [(size, cells, [size / 72 * em + 0.3 for em in ems]) for size in (20, 16, 14, 12)]

    def body(size: int, cells: list) -> float:
        return TABLE_HEIGHT - _row_height(size, 1 + max(name.count("\n") for name in cells[0]))

    narrow = [choice for choice in choices if sum(choice[2]) <= TABLE_WIDTH]
    whole = [choice for choice in narrow if (len(rows) - 1) * _row_height(choice[0]) <= body(*choice[:2])]
    small = [choice for choice in narrow if choice[0] <= 14]
    size, cells, widths = [*whole, *small, choices[-1]][0]
    groups = [[0]]  # the first column, which names the rows, stands in every part
    for column in range(1, len(widths)):
        if sum(widths[i] for i in groups[-1]) + widths[column] > TABLE_WIDTH:
            groups.append([0])
        groups[-1].append(column)
    n_slides = max(1, -(-(len(rows) - 1) // int(body(size, cells) / _row_height(size))))
    parts, n_rows = [], max(1, -(-(len(rows) - 1) // n_slides))
    for start in range(1, max(len(rows), 2), n_rows):
        for group in groups:
            part = [[row[i] for i in group] for row in [cells[0], *cells[start : start + n_rows]]]
            parts.append((part, [widths[i] for i in group]))
    return parts, size


def _add_table(slide, part: tuple[list[list[str]], list[float]], size: int, told: str, mark: str, theme: str) -> None:
    from pptx.dml.color import RGBColor
    from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
    from pptx.oxml.ns import qn
    from pptx.util import Inches, Pt

    rows, widths = part
    heights = [_row_height(size, 1 + max(text.count("\n") for text in row)) for row in rows]
    shape = slide.shapes.add_table(len(rows), len(widths), *map(Inches, (0.5, SLIDE_HEAD, sum(widths), sum(heights))))
    shape._element.nvGraphicFramePr.cNvPr.set("descr", told)
    shape.table._tbl.tblPr.find(qn("a:tableStyleId")).text = NO_TABLE_STYLE
    ink = RGBColor.from_string(_slide_colour(INK, theme))
    fills = [RGBColor.from_string(_slide_colour(colour, theme)) for colour in ("#d3dee8", "#ffffff", "#f3f6f9")]
    for column, width in enumerate(widths):
        shape.table.columns[column].width = Inches(width)
        numeric = all(re.fullmatch(r"[-+–]?[\d.,]*(e[-+]?\d+)?", row[column]) for row in rows[1:])
        for row, texts in enumerate(rows):
            cell = shape.table.cell(row, column)
            cell.text, cell.text_frame.word_wrap = texts[column], False
            cell.margin_top = cell.margin_bottom = Inches(0.03)
            cell.vertical_anchor = MSO_ANCHOR.MIDDLE
            cell.fill.solid()
            cell.fill.fore_color.rgb = fills[0 if row == 0 else 2 - row % 2]
            for paragraph in cell.text_frame.paragraphs:
                paragraph.font.size, paragraph.font.bold, paragraph.font.color.rgb = Pt(size), row == 0, ink
                paragraph.alignment = PP_ALIGN.RIGHT if numeric else PP_ALIGN.LEFT
    for row, height in enumerate(heights):
        shape.table.rows[row].height = Inches(height)
    if mark:
        foot = slide.shapes.add_textbox(0, 0, 0, 0)
        _place(foot, (0.4, 7.08, 12.53, 0.3), fit_mark(mark, 12.3, 12), 12)
        foot.text_frame.paragraphs[0].alignment = PP_ALIGN.RIGHT


def _darken(colours: np.ndarray) -> np.ndarray:
    """Return colours (n, 3), from 0 to 1, made for white as colours for a dark background; hue and chroma stay.

    The lightness of Oklab (Ottosson, A perceptual color space for image processing, 2020) is turned round: what was
    lighter than its surroundings is darker afterwards, so that nothing legible is lost and blended edges stay smooth.
    """
    to_cones = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    to_lab = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ to_cones.T) @ to_lab.T
    # flat among the colours of lines and bars, which stay bright, and steep between them and white
    lab[:, 0] = np.interp(lab[:, 0], [0, 0.25, 0.55, 0.68, 0.85, 0.92, 1], [0.98, 0.95, 0.72, 0.62, 0.57, 0.42, 0.23])
    linear = ((lab @ np.linalg.inv(to_lab).T) ** 3 @ np.linalg.inv(to_cones).T).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@functools.cache
def _dark_table():
    """Return `_darken` as a table that Pillow looks colours up in."""
    from PIL import ImageFilter

    steps = np.linspace(0, 1, 33)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red changes fastest
    colours = _darken(np.stack([red, green, blue], axis=-1).reshape(-1, 3))
    return ImageFilter.Color3DLUT(33, colours.ravel().tolist())


@functools.lru_cache(maxsize=512)  # a figure lies in the deck of its notebook and in that of all
def _dark_picture(path: Path, modified: int, boxes: tuple[tuple[float, ...], ...]) -> bytes:
    """Return the figure in a PNG file as one for a dark slide, also PNG.

    What lies in `boxes` (left, top, right, bottom, in shares of the picture) stays as it is.
    """
    from PIL import Image

    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    dark, sides = picture.filter(_dark_table()), np.tile(picture.size, 2)
    for box in boxes:
        box = tuple(int(side) for side in np.rint(box * sides))
        dark.paste(picture.crop(box), box[:2])
    content = io.BytesIO()
    dark.save(content, "png")
    return content.getvalue()


def _slide_colour(colour: str, theme: str) -> str:
    """Return a colour of light slides as the theme has it, in six hexadecimal digits."""
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.array(to_rgb(colour))
    return to_hex(_darken(rgb[None])[0] if theme == "dark" else rgb)[1:]
