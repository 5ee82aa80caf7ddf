"""What do users feel? A load engine: planned requests, a client that stamps every chunk, metrics, a verdict on itself.

    plan = draw_open_plan("poisson", rate_per_s=5, duration_s=60)                # labkit.workload
    result = run_load(server.base_url, plan, model=server.model, slo="ttft=0.5")  # run
    print(format_report(result))                                                 # report

`labkit.workload` plans the requests. `transport` moves the bytes, `sse` finds the events, `records` says what happened
to one request, `client` sends, `loop` makes its timers precise, `workers` are several clients, `virtual` is a client in
virtual time. `metrics` sums up a run, `verdict` judges its client, `sampling` watches the server, `report` writes it
down, `compare` compares runs, `search` finds the highest rate within an SLO, `formulas` are those of other tools.
`noop` and `bench` measure the client itself; `locustfile` runs it under Locust. The figures are in `labkit.plots.load`.
"""

__all__: list[str] = []
