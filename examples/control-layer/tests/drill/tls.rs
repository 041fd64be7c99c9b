//! A broker that proves itself and asks who we are: the variables of the contract reach the client.

use modax_testbed::{Ground, MosquittoOptions, pki::Authority};

use crate::{Outcome, layer::Layer};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_behind_mutual_tls_is_reached_with_the_files_of_the_environment_and_not_without() -> Outcome {
    let ground = Ground::start().await?;
    let (ours, shown) = (Authority::new("plant"), ground.port());
    let (broker, client) = (ours.issue(&["127.0.0.1"]), ours.issue(&["control-layer"]));
    let file = |name: &str, text: &str| {
        let path = ground.dir().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let ca = file("ca.pem", ours.pem());
    let (certificate, key) = (file("broker.pem", &broker.certificate), file("broker.key", &broker.key));
    let (certfile, keyfile) = (file("layer.pem", &client.certificate), file("layer.key", &client.key));
    let extra = format!(
        "listener {shown} 127.0.0.1\ncafile {ca}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true"
    );
    ground.mosquitto_with(MosquittoOptions { extra, ..MosquittoOptions::default() }).await?;
    let nothing = format!("postgresql://modax@127.0.0.1:{}/modax", ground.port());
    let url = format!("mqtts://127.0.0.1:{shown}");
    let common = [("MQTT_BROKERS", url.as_str()), ("DATABASE_URL", nothing.as_str()), ("MQTT_CA_CERTS", ca.as_str())];
    let proof = [("MQTT_CERTFILE", certfile.as_str()), ("MQTT_KEYFILE", keyfile.as_str())];

    let known = Layer::start(&ground, "known", &[common.as_slice(), proof.as_slice()].concat()).await?;
    let stranger = Layer::start(&ground, "stranger", &common).await?;

    known.until("it is connected", "/health", |_, body| body["checks"]["mqtt"] == true).await;
    stranger
        .until("it was refused", "/metrics", |_, _| stranger.process.log_tail(1_000).contains("CertificateRequired"))
        .await;
    assert_eq!(stranger.get("/health").await.1["checks"]["mqtt"], false);
    ground.stop().await;
    Ok(())
}
