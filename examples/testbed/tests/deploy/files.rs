//! What the files say, against what the programs read, serve and count.

use std::collections::BTreeSet;

use modax_testbed::bring;
use yaml_rust2::{Yaml, YamlLoader};

use crate::{examples, read, source_of};

fn parsed(path: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn keys(value: &Yaml) -> Vec<String> {
    let keys = value.as_hash().into_iter().flatten().filter_map(|(key, _)| key.as_str());
    keys.map(str::to_owned).collect()
}

fn list(value: &Yaml) -> &[Yaml] {
    value.as_vec().map_or(&[], Vec::as_slice)
}

/// Fails for each name that does not stand in `source` as a string.
#[track_caller]
fn known(what: &str, names: impl IntoIterator<Item = String>, source: &str) {
    let unknown: Vec<String> = names.into_iter().filter(|name| !source.contains(&format!("\"{name}\""))).collect();
    assert!(unknown.is_empty(), "{what}: the program does not know {unknown:?}");
}

#[test]
fn the_compose_file_gives_each_instance_an_identity_and_names_the_programs_know() {
    let compose = &parsed("compose.yaml")[0];
    let shared = keys(&compose["x-control-environment"]);
    let mut identities = BTreeSet::new();
    for (layer, program) in [("control-layer", "control-layer"), ("ai-layer", "ai-layer")] {
        let source = source_of(program);
        for instance in 1..=2 {
            let name = format!("{layer}-{instance}");
            let service = &compose["services"][name.as_str()];
            assert_eq!(service["<<"]["command"][0].as_str(), Some(program), "{name}");
            assert!(service["<<"]["deploy"].is_badvalue(), "{name}: replicas would share an identity");
            let environment = &service["environment"];
            identities.insert(environment["INSTANCE_ID"].as_str().expect("an identity").to_owned());
            let names = keys(environment).into_iter().filter(|name| name != "<<");
            let shared = shared.iter().filter(|_| program == "control-layer").cloned();
            known(&name, names.chain(shared), &source);
        }
    }
    assert_eq!(identities.len(), 4, "{identities:?}");
    for volume in list(&compose["services"]["haproxy"]["volumes"]) {
        let file = volume.as_str().and_then(|volume| volume.split(':').next()).expect("a file and its place");
        assert!(examples().join("deploy").join(file).is_file(), "{file}");
    }
    let dockerfile = compose["x-build"]["dockerfile"].as_str().expect("a Dockerfile");
    assert!(examples().parent().expect("a root").join(dockerfile).is_file(), "{dockerfile}");
}

#[test]
fn the_image_holds_the_two_programs() {
    let dockerfile = read("Dockerfile");
    for program in ["control-layer", "ai-layer"] {
        let manifest = std::fs::read_to_string(examples().join(program).join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains(&format!("name = \"{program}\"")));
        assert!(dockerfile.contains(&format!("-p {program}")) && dockerfile.contains(&format!("release/{program}")));
    }
}

#[test]
fn kubernetes_asks_live_for_liveness_and_ready_for_readiness() {
    let served = source_of("../modax-health");
    let deployments: Vec<Yaml> =
        parsed("kubernetes/layers.yaml").into_iter().filter(|it| it["kind"].as_str() == Some("Deployment")).collect();
    assert_eq!(deployments.len(), 2);
    for deployment in &deployments {
        let name = deployment["metadata"]["name"].as_str().expect("a name");
        let spec = &deployment["spec"];
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"], "{name}");
        assert!(spec["replicas"].as_i64() >= Some(2), "{name}: one alone is no high availability");
        let pod = &spec["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["command"][0].as_str(), Some(name));
        let path = |probe: &str| container[probe]["httpGet"]["path"].as_str();
        assert_eq!(path("livenessProbe"), Some("/live"), "{name}: a dependency must not restart it");
        assert_eq!(path("readinessProbe"), Some("/ready"), "{name}");
        assert_ne!(path("startupProbe"), Some("/ready"), "{name}: it may start while the database is away");
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].into_iter().filter_map(path);
        known(name, probes.map(str::to_owned), &served);
        let names = list(&container["env"]).iter().filter_map(|pair| pair["name"].as_str()).map(str::to_owned);
        known(name, names, &source_of(name));
        assert!(pod["terminationGracePeriodSeconds"].as_i64() >= Some(10), "{name}: a drain must not be cut short");
    }
}

#[test]
fn every_service_and_budget_of_kubernetes_selects_a_deployment() {
    let objects = parsed("kubernetes/layers.yaml");
    let names: BTreeSet<&str> = objects
        .iter()
        .filter(|it| it["kind"].as_str() == Some("Deployment"))
        .filter_map(|it| it["metadata"]["name"].as_str())
        .collect();
    for object in &objects {
        let selector = match object["kind"].as_str().expect("a kind") {
            "Service" => &object["spec"]["selector"],
            "PodDisruptionBudget" => &object["spec"]["selector"]["matchLabels"],
            "Deployment" => continue,
            other => panic!("{other} is checked by nobody"),
        };
        assert!(selector["app"].as_str().is_some_and(|app| names.contains(app)), "{selector:?}");
    }
}

#[test]
fn patroni_is_as_fast_as_it_accepts_and_loses_no_acknowledged_row() {
    let patroni = &parsed("patroni/patroni.yml")[0];
    let dcs = &patroni["bootstrap"]["dcs"];
    let number = |key: &str| dcs[key].as_i64().unwrap_or_else(|| panic!("{key} is a number"));
    assert!(number("ttl") >= 20, "a current Patroni refuses less");
    assert!(number("loop_wait") + 2 * number("retry_timeout") <= number("ttl"));
    assert_eq!(dcs["synchronous_mode"].as_bool(), Some(true));
    assert!(patroni["etcd"].is_badvalue() && !patroni["etcd3"].is_badvalue(), "etcd no longer speaks v2");
    for user in ["superuser", "replication", "rewind"] {
        let account = &patroni["postgresql"]["authentication"][user];
        assert!(account["username"].as_str().is_some() && account["password"].is_badvalue(), "{user}");
    }
}

#[test]
fn postgresql_takes_its_file_and_one_dead_standby_stops_nobody() {
    let file = examples().join("deploy/postgresql/modax.conf");
    let data = std::env::temp_dir().join(format!("modax-deploy-{}", std::process::id()));
    std::fs::create_dir_all(&data).expect("a folder for the data");
    let setting = |name: &str| {
        let mut command = bring::program("postgres").expect("PostgreSQL").command();
        // `-C` comes first: then PostgreSQL does not mind root.
        let output = command.arg("-C").arg(name).arg("-D").arg(&data).arg(format!("--config-file={}", file.display()));
        let output = output.output().expect("postgres runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let standbys = setting("synchronous_standby_names");
    assert!(standbys.starts_with("ANY 1 (") && standbys.matches(',').count() >= 1, "{standbys}");
    assert_eq!(setting("synchronous_commit"), "on");
    assert_eq!(setting("wal_log_hints"), "on");
    std::fs::remove_dir_all(data).expect("the folder goes");
}

#[test]
fn every_alert_asks_for_a_metric_that_exists() {
    let source = [source_of("control-layer"), source_of("../modax-health")].concat();
    let alerts = &parsed("prometheus/alerts.yml")[0];
    let mut rules = 0;
    for rule in list(&alerts["groups"]).iter().flat_map(|group| list(&group["rules"])) {
        let name = rule["alert"].as_str().expect("an alert has a name");
        let expression = rule["expr"].as_str().expect("an alert has an expression");
        let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let metrics: Vec<&str> = words.filter(|word| word.starts_with("modax_")).collect();
        for metric in &metrics {
            assert!(source.contains(metric), "{name}: nobody counts {metric}");
        }
        assert!(!metrics.is_empty() || expression.contains("up{job="), "{name}: {expression}");
        assert!(rule["labels"]["severity"].as_str().is_some(), "{name} has no severity");
        assert!(rule["annotations"]["summary"].as_str().is_some(), "{name} has no summary");
        rules += 1;
    }
    assert!(rules >= 5);
}

#[test]
fn haproxy_asks_for_what_the_layers_serve() {
    let config = read("haproxy/haproxy.cfg");
    let asked = config.lines().filter_map(|line| line.trim().strip_prefix("http-check send meth GET uri "));
    let asked: Vec<&str> = asked.collect();
    assert_eq!(asked, ["/status", "/models/info"]);
    known("control-layer", [asked[0].to_owned()], &source_of("control-layer"));
    known("ai-layer", [asked[1].to_owned()], &source_of("ai-layer"));
}

#[test]
fn the_readme_has_a_word_on_every_file() {
    let readme = read("README.md");
    let mut unnamed = Vec::new();
    let mut folders = vec![examples().join("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("deploy can be read").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(examples().join("deploy")).expect("below deploy").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name != "README.md" && !readme.contains(&format!("`{name}`")) {
                unnamed.push(name);
            }
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:?}");
}
