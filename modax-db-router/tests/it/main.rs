//! Tests without servers: tables, properties against small models, and a seeded simulation in virtual time.

mod commit_rule;
mod compile;
mod config;
mod harness;
mod hostile;
mod plans;
mod retry;
mod simulation;
mod tables;
mod tokens;
