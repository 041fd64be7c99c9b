//! Fast tests: no servers, no waiting but for events.

mod simulation;
