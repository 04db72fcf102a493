"""What watches Postlane: SLOs, alerts, dashboards as data and code, and the files that Prometheus and Grafana read.

`python -m observability` writes the generated files anew; a test compares them. Nothing here runs in a service.
"""
