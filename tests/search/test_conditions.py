"""Every store answers the table of conditions."""

import numpy as np
import pytest

from hf_vse.search.filters import item_fields, matching
from hf_vse.search.gallery import GalleryIndex
from tests.search.conditions import ITEMS, REFUSED, TABLE


@pytest.mark.parametrize(("where", "rows"), TABLE, ids=[" and ".join(where) for where, _ in TABLE])
def test_conditions_choose_these_items(where, rows):
    assert np.flatnonzero(matching(ITEMS, where)).tolist() == rows


@pytest.mark.parametrize("condition", REFUSED)
def test_conditions_that_cannot_be_asked_are_refused(condition):
    with pytest.raises(ValueError, match="condition") as refused:
        matching(ITEMS, [condition])
    assert REFUSED[condition] in str(refused.value)


def test_a_gallery_records_its_fields(tmp_path):
    gallery = GalleryIndex(np.eye(len(ITEMS), 16), ITEMS, model="m")
    gallery.save(tmp_path)
    loaded = GalleryIndex.load(tmp_path)
    assert loaded.facts["fields"] == item_fields(ITEMS) == gallery.fields
    assert loaded.fields["year"] == ["number"] and loaded.fields["id"] == ["number", "text"]
    loaded.check_conditions(["year>=2020"])
    with pytest.raises(ValueError, match="no item has 'yaer'"):
        loaded.check_conditions(["yaer>=2020"])
