"""What to train on: one settings model for each kind of source, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from learning.bounds import (
    Classes,
    FilePath,
    Flag,
    Name,
    PixelsFrom0,
    Rows,
    Samples,
    Seed,
    Share,
    TestShare,
    Tokens,
)
from learning.settings import Settings


class AugmentSettings(Settings):
    """Random changes of the train images; evaluation never sees them."""

    flip: Flag = Field(default=False, description="mirror left to right half of the time")
    crop: PixelsFrom0 = Field(
        default=0,
        description="pixels of zero (black) padding on each side, before a random crop",
    )


class SourceSettings(Settings):
    """What every kind of source has.

    The validation rows are a part of the train rows (after `limit`): as many of each class, drawn
    alike whatever the seed of a run is; of tokens the last.
    """

    validation: Share = Field(default=0.1, description="share of the train rows")
    augment: AugmentSettings = AugmentSettings()


class LabelledSettings(SourceSettings):
    """What the sources of numbers with one label a row have."""

    classes: Classes | None = Field(
        default=None,
        description="number of classes; else the largest train label plus 1",
    )
    normalize: Flag = Field(
        default=True,
        description="subtract the mean and divide by the deviation of the train split, of each "
        "channel of images and each column of flat rows",
    )


class DigitsSettings(LabelledSettings):
    """The handwritten digits that scikit-learn carries: 1,797 images of shape (1, 8, 8)."""

    kind: Literal["digits"] = "digits"
    test: TestShare = Field(default=0.2, description="share of all rows")


class FileSettings(SourceSettings):
    """What the sources read from files have."""

    limit: Rows | None = Field(default=None, description="use only the first train rows")
    test_limit: Rows | None = Field(default=None, description="use only the first test rows")


class ParquetSettings(FileSettings, LabelledSettings):
    """Parquet files of encoded images (bytes, or a struct with `bytes`) and integer labels."""

    kind: Literal["parquet"] = "parquet"
    train: FilePath
    test: FilePath
    image: Name = "image"
    label: Name = "label"
    cache: FilePath | None = Field(default=None, description="folder of decoded images")


class ArraysSettings(FileSettings, LabelledSettings):
    """A `.npz` file with x_train, y_train, x_test and y_test.

    x is uint8 (then scaled to [0, 1]), float or bool, both parts alike, of shape (N, D) or
    (N, C, H, W); y is integer or bool.
    """

    kind: Literal["arrays"] = "arrays"
    path: FilePath


class TextSettings(FileSettings):
    """A text file, UTF-8, as rows of characters; each character's label is the next one.

    The vocabulary is the sorted characters of the whole file, without a byte order mark. Rows
    follow each other without overlap, and the splits share no character.
    """

    kind: Literal["text"] = "text"
    path: FilePath
    context: Tokens = Field(default=128, description="characters a row")
    test: TestShare = Field(default=0.1, description="share of the text, its end")


class ReversalSettings(SourceSettings):
    """Random sequences of symbols; the labels of a row are its symbols in reverse."""

    kind: Literal["reversal"] = "reversal"
    length: Tokens = Field(default=16, description="symbols a row")
    symbols: Classes = Field(default=10, ge=2, description="size of the vocabulary")
    rows: Samples = Field(default=10_000, ge=2, description="rows of all splits; no two are alike")
    test: TestShare = Field(default=0.1, description="share of all rows")
    seed: Seed = Field(default=0, description="of the rows; not that of the run")


DataSettings = Annotated[
    DigitsSettings | ParquetSettings | ArraysSettings | TextSettings | ReversalSettings,
    Field(discriminator="kind"),
]
