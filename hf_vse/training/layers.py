"""The layers of a tower, from its modules and not from a table of architectures.

The blocks are the children of the outermost `nn.ModuleList`, or `nn.Sequential`, with most parameters: the blocks of a
transformer, or the stages of a convolutional network. Lists of equal length side by side, such as the two directions
of a recurrent network, make up the same blocks. Three or more `nn.Sequential` side by side, such as `layer1` to
`layer4` of timm's ResNet, are the blocks themselves. What is registered before the blocks embeds the input, what comes
after them belongs to the head. A tower without such a list is one block after its embeddings of words.
"""

from collections.abc import Sequence

from torch import nn

SIDE_BY_SIDE = 3  # stages; fewer are a stem or a head beside the list of stages

Modules = list[nn.Module]  # a tower, see `VSEModel.tower_modules`, or a block


def size(modules: Modules) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def blocks_below(parent: nn.Module) -> list[Modules]:
    """The blocks among the children of a module and their children; none if it has no list as a child."""
    children = [child for child in parent.children() if size([child])]
    lists = [child for child in children if isinstance(child, nn.ModuleList)]
    rows = [child for child in children if isinstance(child, nn.Sequential)]
    if not lists and len(rows) >= SIDE_BY_SIDE:
        return [[row] for row in rows]
    if not lists and not rows:
        return []
    candidates: Sequence[nn.ModuleList | nn.Sequential] = lists or rows
    largest = max(candidates, key=lambda each: size([each]))
    beside = [each for each in lists if len(each) == len(largest)]
    parallel: Sequence[nn.ModuleList | nn.Sequential] = beside or [largest]
    return [block for each in zip(*parallel, strict=True) if size(block := list(each))]


def blocks_of(tower: Modules) -> list[Modules]:
    """The blocks of a tower from its input to its output; none if it has no list of modules."""
    level = list(tower)
    while level:
        found = [blocks for parent in level if (blocks := blocks_below(parent))]
        if found:
            return max(found, key=lambda blocks: sum(map(size, blocks)))
        level = [child for parent in level for child in parent.children()]
    return []


def layer_numbers(tower: Modules) -> tuple[dict[int, int], int]:
    """The layer of every parameter of a tower, and the number L of its blocks.

    Returns:
        By `id` of the parameter 0 for embeddings, 1 to L for the blocks and what stands between them, L + 1 for what
        follows the last; and L.
    """
    blocks = blocks_of(tower)
    if not blocks:
        embeddings = [each for module in tower for each in module.modules() if isinstance(each, nn.Embedding)]
        words = {id(parameter) for module in embeddings for parameter in module.parameters()}
        return {id(each): int(id(each) not in words) for module in tower for each in module.parameters()}, 1
    of_blocks = {
        id(each): number for number, block in enumerate(blocks, 1) for module in block for each in module.parameters()
    }
    numbers: dict[int, int] = {}
    outside = 0
    for parameter in (each for module in tower for each in module.parameters()):
        if id(parameter) in of_blocks:
            number = of_blocks[id(parameter)]
            outside = number + (number == len(blocks))
        numbers[id(parameter)] = of_blocks.get(id(parameter), outside)
    return numbers, len(blocks)
