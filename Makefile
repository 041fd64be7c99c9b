# The two commands people need: `make demo` and `make test`. The rest is for those who change the code.
CARGO ?= cargo
# Where cargo puts the binaries, also when it was told to put them elsewhere.
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: demo test build lint doc features package loom bench-mqtt drill-mqtt help

help: ## This list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: build ## Brings real servers, breaks them one after another and counts what was lost (about 5 minutes)
	$(TARGET)/release/modax demo

test: ## Every test: tables, properties, simulation, and drills with at most three faults each on real servers
	.ci/steps tests

build: ## The binaries: target/release/{modax,control-layer,ai-layer}
	$(CARGO) build --release --workspace --locked

lint: ## Format and clippy
	.ci/steps format clippy

doc: ## The crates' documentation, warnings are errors
	.ci/steps docs

features: ## Each crate without default features
	.ci/steps features

package: ## Each crate as it would be published, built from the package
	.ci/steps package

loom: ## Every interleaving over the MQTT client's hand-over (a minute to run; dependencies are built once more for it)
	RUSTFLAGS="--cfg modax_loom" $(CARGO) test -p modax-mqtt-failover --lib --target-dir $(TARGET)/loom --locked loom_

bench-mqtt: ## The MQTT client beside rumqttc, Paho C, mqtt.js and paho-python, its disk queue beside the disk (about 12 minutes; BENCH=throughput,latency,kill,stop,lost for parts)
	$(CARGO) bench -p modax-mqtt-failover --bench beside --locked
	$(CARGO) bench -p modax-mqtt-failover --bench disk_queue --locked

drill-mqtt: ## The MQTT client's drills with full counts and their table (about an hour; DRILL=f01 for some of them)
	.ci/drill-mqtt $(DRILL)
