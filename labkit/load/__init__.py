"""What do users feel? A load engine: planned requests, a client that stamps every chunk, metrics, a verdict on itself.

    plan = draw_open_plan("poisson", rate_per_s=5, duration_s=60)                # schedules
    result = run_load(server.base_url, plan, model=server.model, slo="ttft=0.5")  # run
    print(format_report(result))                                                 # report

From the bytes up, pure functions without clock or socket: `sse` and `http1` (framing), `answers` and `records` (one
request), `metrics` (a run). Planned beforehand: `arrivals`, `lengths`, `trace`, `schedules`, `target`. On sockets:
`exchange`, `transport`, `client`, `health`, `loop`, `workers`; in virtual time: `virtual`. Judged and written down:
`verdict`, `sampling`, `journal`, `report`, `compare`, `search`; the client itself: `noop`, `bench`. The figures are in
`labkit.plots.load`.
"""

__all__: list[str] = []
