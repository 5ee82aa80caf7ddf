"""How are the notebooks built? One jupytext source makes the learner's lab and the executed solution.

A lab is a folder, solutions/src/NN_topic/, and only that is edited by hand. From its lab.py come labs/NN_topic.ipynb
(stubs, no outputs), solutions/NN_topic.ipynb (executed) and labs/course.json (what the course contains).

    python -m labkit.authoring              build labs/ and labs/course.json
    python -m labkit.authoring --check      exit 1 and name everything that is out of date
    python -m labkit.authoring execute 00   run one solution and store its outputs
    python -m labkit.authoring new 99 topic write the skeleton of a lab, which builds and runs
"""

from labkit.authoring.build import build_labs, check_labs
from labkit.authoring.execute import execute_solution
from labkit.authoring.rules import check_folder, check_source
from labkit.authoring.source import Source, load_source

__all__ = ["Source", "build_labs", "check_folder", "check_labs", "check_source", "execute_solution", "load_source"]
