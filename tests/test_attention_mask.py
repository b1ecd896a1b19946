import torch

from models.attention_mask import map_attention_mask, map_position_ids


def test_mask_equals_the_one_written_by_hand():
    mask = map_attention_mask(torch.ones(1, 2, dtype=torch.bool), num_scene=2, num_instances=2, num_points=2)
    # columns: text text | scene scene | instance a, points a a | instance b, points b b
    expected = [
        "1... ... ...",
        "11.. ... ...",
        "111. ... ...",
        "1111 ... ...",
        "1111 111 1..",
        "1111 111 ...",
        "1111 111 ...",
        "1111 1.. 111",
        "1111 ... 111",
        "1111 ... 111",
    ]
    rows = [[c == "1" for c in row.replace(" ", "")] for row in expected]
    assert mask.shape == (1, 1, 10, 10)
    assert torch.equal(mask[0, 0], torch.tensor(rows))


def test_a_prefix_without_causal_order_sees_all_of_itself_and_no_query():
    valid = torch.tensor([[True, False]])
    causal = map_attention_mask(valid, num_scene=2, num_instances=2, num_points=2)[0, 0]
    full = map_attention_mask(valid, num_scene=2, num_instances=2, num_points=2, causal_prefix=False)[0, 0]
    rows = ["1.11", "1111", "1.11", "1.11"]  # text padding | scene scene
    assert torch.equal(full[:4, :4], torch.tensor([[c == "1" for c in row] for row in rows]))
    assert not full[:4, 4:].any() and torch.equal(full[4:], causal[4:])


def test_padding_is_seen_by_nobody_but_itself():
    valid = torch.tensor([[True, False, False], [True, True, True]])
    mask = map_attention_mask(valid, num_scene=1, num_instances=1, num_points=1)[:, 0]
    padding = mask[0, :, 1:3]
    assert padding.sum() == 2 and padding[1, 0] and padding[2, 1]
    assert torch.equal(mask[1], map_attention_mask(valid[1:], 1, 1, 1)[0, 0])
    assert mask.any(-1).all(), "a row that attends to nothing would be NaN"


def test_position_ids_skip_padding_and_are_one_behind_the_text():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    ids = map_position_ids(valid, num_scene=2, num_instances=2, num_points=2)
    assert ids[0].tolist() == [0, 1, 1] + [2] * 8
    assert ids[1].tolist() == [0, 1, 2] + [3] * 8
