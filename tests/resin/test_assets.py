"""Alert rules and the Grafana dashboard, against promtool and a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import resin_servers

from resin.agent.collectors import default_collectors
from resin.config import Config
from resin.service import app as service_app

RULES = service_app.ASSETS / "alerts.yml"
DASHBOARD = service_app.ASSETS / "grafana.json"

LABELS = (
    'id="f1",host="h",component="train.py",pid="4",metric="anon_bytes",verdict="leak",growth_class="steady"'
)
UNIT_TEST = f"""
rule_files: [{RULES}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'resin_finding_severity{{{LABELS}}}'
        values: '0.9x30'
      - series: 'resin_finding_confidence{{{LABELS}}}'
        values: '0.8x30'
      - series: 'resin_finding_time_to_limit_seconds{{{LABELS}}}'
        values: '14400-600x30'
      - series: 'resin_ingest_failures_total'
        values: '0x30'
      - series: 'resin_ingest_elided_values_total'
        values: '0x10 5x20'
      - series: 'resin_agent_last_sample_timestamp_seconds{{host="silent"}}'
        values: '0x60'
    alert_rule_test:
      - {{eval_time: 4m, alertname: ResinMemoryLeak, exp_alerts: []}}
      - eval_time: 10m
        alertname: ResinMemoryLeak
        exp_alerts:
          - exp_labels: {{severity: warning, id: f1, host: h, component: train.py, pid: "4", metric: anon_bytes,
              verdict: leak, growth_class: steady}}
            exp_annotations:
              summary: train.py on h leaks (anon_bytes, steady)
              description: resin explain f1 shows the numbers; resin diagnose f1 looks for the line.
      - {{eval_time: 11m, alertname: ResinLimitNear, exp_alerts: []}}
      - {{eval_time: 30m, alertname: ResinIngestFailing, exp_alerts: []}}
      - {{eval_time: 9m, alertname: ResinSamplesElided, exp_alerts: []}}
      - {{eval_time: 9m, alertname: ResinAgentSilent, exp_alerts: []}}
    promql_expr_test:
      - expr: count(ALERTS{{alertname="ResinLimitNear", alertstate="firing"}})
        eval_time: 20m
        exp_samples: [{{value: 1}}]
      - expr: count(ALERTS{{alertname="ResinSamplesElided"}})
        eval_time: 15m
        exp_samples: [{{value: 1}}]
      - expr: count(ALERTS{{alertname="ResinAgentSilent", host="silent", alertstate="firing"}})
        eval_time: 20m
        exp_samples: [{{value: 1}}]
"""


def test_rules_fire_when_they_should(tmp_path):
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed")
    test = tmp_path / "rules_test.yml"
    test.write_text(UNIT_TEST)
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(test)]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def dashboard_expressions():
    content = json.loads(DASHBOARD.read_text())
    for panel in content["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable in content["templating"]["list"]:
                expression = expression.replace(f"${variable['name']}", ".*")
            yield panel["title"], expression


def known_metrics():
    """Metrics of the service's own source and of the collectors, as Prometheus sees them."""
    source = (service_app.ASSETS.parent / "metrics.py").read_text()
    names = set(re.findall(r'"((?:resin|process)_[a-z_]+)"', source))
    assert len(default_collectors(Config())) >= 8
    return names | {"resin_anon_bytes", "resin_uss_bytes"}


def test_dashboard_asks_for_metrics_that_exist():
    for title, expression in dashboard_expressions():
        asked = set(re.findall(r"\b(?:resin|process)_[a-z_]+", expression))
        assert asked, title
        assert asked <= known_metrics(), title
    ids = [p["id"] for p in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(ids) == len(set(ids))


def test_rules_ask_for_metrics_that_exist():
    expressions = re.findall(r"expr: (.*)", RULES.read_text())
    assert len(expressions) >= 7
    for expression in expressions:
        assert set(re.findall(r"\bresin_[a-z_]+", expression)) <= known_metrics(), expression


def test_a_real_prometheus_understands_dashboard_and_rules(tmp_path):
    with resin_servers.prometheus(tmp_path, rules=RULES) as url:
        for title, expression in dashboard_expressions():
            query = urllib.parse.urlencode({"query": expression, "time": time.time()})
            with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
                assert json.load(answer)["status"] == "success", title
        with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=10) as answer:
            groups = json.load(answer)["data"]["groups"]
        assert [g["name"] for g in groups] == ["resin"]
        assert len(groups[0]["rules"]) == 7
