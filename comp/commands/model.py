"""`comp model`: a network's layer table."""

from __future__ import annotations


def model(model: str, *, classes: int = 1000, size: int | None = None) -> None:
    """Print a network layer by layer: output size, parameters, multiply-adds, activation values, receptive field.

    Args:
        model: A file of `configs/models/`, or any network's name.
        classes: Classes of its head.
        size: Height and width of the input in pixels; default the network's own.
    """
    from comp import config, runs, terminal, yamls
    from comp.nets import names

    path = runs.home() / "configs" / "models" / f"{config.check_name('MODEL', model)}.yaml"
    section = config.validate(config.RunConfig, yamls.read_yaml(path), path).model if path.exists() else config.Model()
    name = section.name or model
    names.check_model_name(name)

    from comp.nets import build, table

    network = build.build(name, num_classes=classes, img_size=size, activation=section.activation, args=section.args)
    layers = table.layer_table(network, size)
    terminal.table(
        ("layer", "kind", "output", "parameters", "multiply-adds", "activations", "field"),
        [
            (
                row.name,
                row.kind,
                "×".join(map(str, row.output)),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                f"{row.activations:,}",
                row.field,
            )
            for row in layers.rows
        ],
        title=f"{name}, {classes} classes, {layers.size} pixels",
        left=(0, 1),
    )
    terminal.say(
        f"{layers.parameters:,} parameters · {layers.multiply_adds:,} multiply-adds · "
        f"{layers.activations:,} activation values = {layers.activations * 4 / 1e6:.1f} MB in fp32"
    )
