"""A rule's code is what its script really imports: all of it, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

from fedbrain.study.code import LEFT_OUT, PACKAGE, closure, fingerprint


def names(paths):
    return {str(path.relative_to(PACKAGE)) for path in paths if path.is_relative_to(PACKAGE)}


def names_of(path):
    """The dotted name of a module's file."""
    return ".".join(["fedbrain", *Path(path).relative_to(PACKAGE).with_suffix("").parts])


def test_a_figure_depends_on_its_module_and_on_no_other_figure(root):
    files = names(closure([root / "workflow_scripts/plot_auc_by_head.py"]))
    assert {"figures/auc_by_head.py", "figures/style.py", "tables.py"} <= files
    assert not {"figures/auc_by_client.py", "figures/intensity.py"} & files
    assert not any(name.startswith(("models", "imaging", "federated")) for name in files)


def test_the_script_itself_is_part_of_it_and_the_registry_is_not(root):
    script = root / "workflow_scripts/train_cell.py"
    files = closure([script, "fedbrain.federated.aggregation.fedce"])
    assert script in files
    assert "federated/aggregation/fedce.py" in names(files)
    assert "federated/aggregation/rate_my_lora.py" not in names(files)
    # Nor what other rules do on a client.
    others = (
        "local_scaffold",
        "local_proximal",
        "local_dual",
        "orthogonality",
        "aggregation/lora",
        "aggregation/merging",
    )
    assert not {f"federated/{other}.py" for other in others} & names(files)
    scaffold = names(closure([script, "fedbrain.federated.aggregation.scaffold"]))
    assert "federated/local_scaffold.py" in scaffold
    assert "federated/local_dual.py" not in scaffold
    assert "registry.py" not in names(files)


def test_the_fingerprint_is_of_contents_not_of_places(root, tmp_path):
    script = tmp_path / "z" / "plot_auc_by_head.py"
    script.parent.mkdir()
    script.write_bytes((root / "workflow_scripts/plot_auc_by_head.py").read_bytes())
    before = fingerprint([script])
    assert before == fingerprint([root / "workflow_scripts/plot_auc_by_head.py"])
    other = tmp_path / "plot_auc_by_head.py"
    other.write_text(script.read_text() + "# edited\n")
    assert fingerprint([other]) != before


def test_everything_that_a_script_loads_is_declared(root):
    """Agreement with the interpreter: what is in sys.modules after the import is in the closure."""
    for script in ("evaluate_cells.py", "study_page.py", "split_subjects.py"):
        text = (root / "workflow_scripts" / script).read_text()
        nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
        imports = "\n".join(ast.unparse(node) for node in nodes if node.module.startswith("fedbrain"))
        program = (
            f"{imports}\nimport sys\nprint(*[m.__file__ for n, m in sys.modules.items() if n.startswith('fedbrain')])"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
        declared = {str(path) for path in closure([root / "workflow_scripts" / script])}
        undeclared = {
            path for path in loaded if not path.endswith("__init__.py") and names_of(path) not in LEFT_OUT
        } - declared
        assert not undeclared
