"""What is predicted and from what: streams, entities, feature views, request, label.

The question: a quarter of an hour before a flight's scheduled departure from New York City, will
it arrive more than 15 minutes late? What answers it best is how things run right now (the origin,
the destination, the weather) and how the same aircraft fared on its last flights.
"""

from __future__ import annotations

from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    distinct_count,
    last,
    last_k,
    max,
    mean,
    min,
    quantile,
    rate,
    std,
    sum,
    time_since_last,
)
from tidemill.examples.flights.model import build_model, preprocess

NEW_YORK = "America/New_York"
"""The zone of all three origins: EWR, JFK and LGA."""

# Streams. History is replayed in the order of event times, so out_of_orderness is "0s", the
# default. A live feed of departures would declare how late its reports may be, such as "5m".

departures = EventStream(
    "departures",
    event_time="departed_at",
    event_id="flight_id",
    schema={
        "flight_id": "string",
        "departed_at": "timestamp",
        "origin": "string",
        "dest": "string",
        "carrier": "string",
        "tailnum": "string",
        "dep_delay": "int64",
        "distance": "int64",
    },
)

# A flight is an event here once it has arrived; one in the air adds nothing yet.
arrivals = EventStream(
    "arrivals",
    event_time="arrived_at",
    event_id="flight_id",
    schema={
        "flight_id": "string",
        "arrived_at": "timestamp",
        "origin": "string",
        "dest": "string",
        "carrier": "string",
        "tailnum": "string",
        "route": "string",
        "dep_delay": "int64",
        "arr_delay": "int64",
        "air_time": "int64",
    },
)

weather_reports = EventStream(
    "weather",
    event_time="known_at",
    event_id="report_id",
    schema={
        "report_id": "string",
        "known_at": "timestamp",
        "origin": "string",
        "temp": "float64",
        "wind_speed": "float64",
        "wind_gust": "float64",
        "precip": "float64",
        "pressure": "float64",
        "visib": "float64",
    },
)

# Entities. The 2,512 flights without a tail number were all cancelled, so every departure and
# arrival has one: one stream of arrivals serves the aircraft, the destinations and the routes, and
# no event is rejected for a null key. A request may have a null key: the features of that aircraft
# are empty.

origin = Entity("origin")
destination = Entity("destination", join_key="dest")
carrier = Entity("carrier")
aircraft = Entity("aircraft", join_key="tailnum")
route = Entity("route")

late_departure = col("dep_delay") > 15
late_arrival = col("arr_delay") > 15
minutes_made_up = col("dep_delay") - col("arr_delay")

# How the airport of departure runs right now: the finest grid, since minutes matter.
airport_now = FeatureView(
    "airport_now",
    entity=origin,
    stream=departures,
    hop="5m",
    features={
        "departures_30m": count(over="30m"),
        "mean_dep_delay_30m": mean(col("dep_delay"), over="30m"),
        "mean_dep_delay_1h": mean(col("dep_delay"), over="1h"),
        "mean_dep_delay_3h": mean(col("dep_delay"), over="3h"),
        "dep_delay_p90_3h": quantile(col("dep_delay"), 0.9, over="3h"),
        "late_rate_1h": rate(late_departure, over="1h"),
        "late_rate_3h": rate(late_departure, over="3h"),
        "last_dep_delays": last_k(col("dep_delay"), k=3, over="1h"),
        "since_last_departure": time_since_last(over="3h"),
    },
)

# How the airport of arrival runs, as far as flights from New York can tell.
destination_now = FeatureView(
    "destination_now",
    entity=destination,
    stream=arrivals,
    hop="10m",
    features={
        "arrivals_3h": count(over="3h"),
        "mean_arr_delay_3h": mean(col("arr_delay"), over="3h"),
        "max_arr_delay_3h": max(col("arr_delay"), over="3h"),
        "late_rate_3h": rate(late_arrival, over="3h"),
        "late_rate_1d": rate(late_arrival, over="1d"),
    },
)

# How the same aircraft arrived last. Its way back to New York is not in the data.
aircraft_arrivals = FeatureView(
    "aircraft_arrivals",
    entity=aircraft,
    stream=arrivals,
    hop="15m",
    features={
        "last_arr_delays": last_k(col("arr_delay"), k=3, over="2d"),
        "last_made_up": last(minutes_made_up, over="2d"),
        "mean_arr_delay_7d": mean(col("arr_delay"), over="7d"),
        "late_rate_7d": rate(late_arrival, over="7d"),
        "destinations_7d": distinct_count(col("dest"), over="7d"),
        "since_last_arrival": time_since_last(over="7d"),
    },
)

# When it left New York last, and how late: an aircraft that left an hour ago is not back yet.
aircraft_departures = FeatureView(
    "aircraft_departures",
    entity=aircraft,
    stream=departures,
    hop="15m",
    features={
        "departures_1d": count(over="1d"),
        "last_dep_delay": last(col("dep_delay"), over="1d"),
        "miles_7d": sum(col("distance"), over="7d"),
        "since_last_departure": time_since_last(over="2d"),
    },
)

carrier_week = FeatureView(
    "carrier_week",
    entity=carrier,
    stream=departures,
    hop="1h",
    features={
        "mean_dep_delay_3h": mean(col("dep_delay"), over="3h"),
        "late_rate_1d": rate(late_departure, over="1d"),
        "late_rate_7d": rate(late_departure, over="7d"),
        "long_haul_late_rate_7d": rate(late_departure, over="7d", where=col("distance") > 1500),
        "tails_1d": distinct_count(col("tailnum"), over="1d"),
    },
)

# What a route is like: windows of four weeks that move twice a day.
route_month = FeatureView(
    "route_month",
    entity=route,
    stream=arrivals,
    hop="12h",
    features={
        "arrivals_28d": count(over="28d"),
        "mean_arr_delay_28d": mean(col("arr_delay"), over="28d"),
        "arr_delay_p90_28d": quantile(col("arr_delay"), 0.9, over="28d"),
        "mean_made_up_28d": mean(minutes_made_up, over="28d"),
        "std_air_time_28d": std(col("air_time"), over="28d"),
    },
)

# The weather at the origin. Reports are missing for up to six hours at a time, so windows of six
# hours hold the newest one, and a value that is three hours old is still fresh.
weather = FeatureView(
    "weather",
    entity=origin,
    stream=weather_reports,
    hop="1h",
    max_staleness="3h",
    features={
        "temp": last(col("temp"), over="6h"),
        "wind_speed": last(col("wind_speed"), over="6h"),
        "max_wind_gust_3h": max(col("wind_gust"), over="3h"),
        "pressure": last(col("pressure"), over="6h"),
        "visib": last(col("visib"), over="6h"),
        "min_visib_3h": min(col("visib"), over="3h"),
        "precip_3h": sum(col("precip"), over="3h"),
    },
)

scheduled_departure = col("scheduled_departure")

requests = Request(
    "requests",
    request_time="requested_at",
    request_id="flight_id",
    schema={
        "flight_id": "string",
        "requested_at": "timestamp",
        "origin": "string",
        "dest": "string",
        "carrier": "string",
        "tailnum": "string",
        "route": "string",
        "scheduled_departure": "timestamp",
        "scheduled_minutes": "int64",
        "distance": "int64",
    },
    inputs={
        "origin": col("origin"),
        "dest": col("dest"),
        "carrier": col("carrier"),
        "hour": scheduled_departure.hour_of_day(NEW_YORK),
        "weekday": scheduled_departure.day_of_week(NEW_YORK),
        "scheduled_minutes": col("scheduled_minutes"),
        "distance": col("distance"),
    },
)

# The latest arrival of 2013 came 33 hours after its request. Flights that were cancelled or
# diverted have no arrival: they stay unlabelled.
late = Label(
    "late",
    stream=arrivals,
    value=late_arrival,
    on={"flight_id": "flight_id"},
    horizon="2d",
)

project = Project(
    name="flights",
    request=requests,
    views=[
        airport_now,
        destination_now,
        aircraft_arrivals,
        aircraft_departures,
        carrier_week,
        route_month,
        weather,
    ],
    label=late,
    preprocessing_fn=preprocess,
    model=build_model,
)
