//! One client's connection.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::v4::{
    Connect, Packet, PubAck, PubComp, PubRec, Publish, SubAck, Subscribe, SubscribeReasonCode, Unsubscribe,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::hub::{OUTGOING, quality};
use super::script::{Connack, Puback, Script, Suback};
use super::seen::{ConnectSeen, PublishSeen, SubscribeSeen, record};
use super::wire::{Answer, Wire};

/// How long a connection may stay without a CONNECT.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a connection ended, as far as its will is concerned.
enum Over {
    InOrder,
    Broken,
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, number: u64, ended: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let client = Client { shared: &shared, number, framed: Framed::new(stream, Wire::default()), held: Vec::new() };
    let over = tokio::select! {
        over = client.run() => over,
        () = ended.cancelled() => Over::Broken,
    };
    shared.hub().detach(number, matches!(over, Over::InOrder));
    shared.changed();
}

struct Client<'a> {
    shared: &'a Shared,
    number: u64,
    framed: Framed<TcpStream, Wire>,
    /// Publishes whose PUBACK waits to be sent in another order: packet id and place in the record.
    held: Vec<(u16, Option<usize>)>,
}

impl Client<'_> {
    async fn run(mut self) -> Over {
        let first = tokio::time::timeout(SILENCE, self.framed.next()).await;
        let Ok(Some(Ok(Packet::Connect(connect)))) = first else { return Over::Broken };
        self.saw_connect(&connect);
        let Some(mut outgoing) = self.accept(connect).await else { return Over::Broken };
        let mut publishes = 0;
        loop {
            tokio::select! {
                packet = self.framed.next() => {
                    let Some(Ok(packet)) = packet else { return Over::Broken };
                    let over = self.handle(packet, &mut publishes).await;
                    self.shared.changed();
                    if let Some(over) = over {
                        return over;
                    }
                }
                Some(answer) = outgoing.recv() => {
                    let is_goodbye = matches!(answer, Answer::Goodbye(_));
                    if self.framed.send(answer).await.is_err() || is_goodbye {
                        return Over::Broken;
                    }
                }
            }
        }
    }

    fn script(&self) -> Script {
        self.shared.hub().script.clone()
    }

    fn saw_connect(&self, connect: &Connect) {
        let seen = ConnectSeen {
            connection: self.number,
            client_id: connect.client_id.clone(),
            clean_session: connect.clean_session,
            keep_alive: connect.keep_alive,
            has_will: connect.last_will.is_some(),
            username: connect.login.as_ref().map(|login| login.username.clone()),
        };
        record(&mut self.shared.hub().seen.connects, seen);
        self.shared.changed();
    }

    /// Answers CONNECT as the script says; `None` when the connection is over.
    async fn accept(&mut self, connect: Connect) -> Option<mpsc::Receiver<Answer>> {
        let script = self.script();
        match script.connack {
            Connack::Accept | Connack::TakenOver => {}
            Connack::Never => {
                self.shared.hub().fired.connack_withheld += 1;
                self.shared.changed();
                while let Some(Ok(_)) = self.framed.next().await {}
                return None;
            }
            Connack::Late(delay) => {
                self.shared.hub().fired.connack_late += 1;
                self.shared.changed();
                tokio::time::timeout(delay, self.gone()).await.err()?;
            }
            Connack::Refuse(code) => {
                self.shared.hub().fired.connack_refused += 1;
                let _ = self.framed.send(Answer::Unwelcome(code)).await;
                return None;
            }
            Connack::Drop => {
                self.shared.hub().fired.dropped_before_connack += 1;
                return None;
            }
        }
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let (session_present, again) = self.shared.hub().attach(self.number, connect, sender);
        self.framed.send(Answer::Welcome { session_present, limits: script.limits }).await.ok()?;
        for packet in again {
            self.framed.send(packet.into()).await.ok()?;
        }
        self.shared.changed();
        if script.connack == Connack::TakenOver {
            self.shared.hub().fired.takeovers += 1;
            return None;
        }
        Some(outgoing)
    }

    /// Ends when the client has gone. What it sent ahead is left where it is.
    async fn gone(&self) {
        while let Ok(1..) = self.framed.get_ref().peek(&mut [0]).await {
            // Bytes that wait would be seen again and again.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn handle(&mut self, packet: Packet, publishes: &mut u64) -> Option<Over> {
        match packet {
            Packet::Publish(publish) => {
                *publishes += 1;
                self.publish(publish, *publishes).await
            }
            Packet::PubAck(ack) => {
                self.shared.hub().acknowledged(self.number, ack.pkid);
                None
            }
            Packet::PubRel(release) => self.send(Packet::PubComp(PubComp::new(release.pkid))).await,
            Packet::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe).await,
            Packet::PingReq => {
                self.shared.hub().seen.pings += 1;
                if self.script().answers_pings {
                    return self.send(Packet::PingResp).await;
                }
                self.shared.hub().fired.pingresp_withheld += 1;
                None
            }
            Packet::Disconnect => Some(Over::InOrder),
            // A second CONNECT, or packets only a broker sends: MQTT 3.1.1 asks to close.
            _ => Some(Over::Broken),
        }
    }

    async fn send(&mut self, answer: impl Into<Answer>) -> Option<Over> {
        self.framed.send(answer.into()).await.err().map(|_| Over::Broken)
    }

    async fn publish(&mut self, publish: Publish, of_connection: u64) -> Option<Over> {
        let script = self.script();
        let (index, since_script) = self.saw_publish(&publish);
        let packet_id = publish.pkid;
        let qos = publish.qos as u8;
        if script.closes_on.as_deref() == Some(&*publish.topic) {
            self.shared.hub().fired.closed += 1;
            return Some(Over::Broken);
        }
        let spoiled = since_script > script.acked_first;
        let withheld = script.dies_after.is_some() || script.closes_after.is_some();
        let is_refused = qos == 1 && spoiled && !withheld && matches!(script.puback, Puback::Refused(_));
        if (!publish.dup || qos < 2) && !is_refused {
            let mut hub = self.shared.hub();
            hub.publish(&publish.topic, publish.payload, qos.min(1), publish.retain);
        }
        if spoiled && script.dies_after.is_some_and(|count| since_script >= count) {
            self.shared.hub().fired.died += 1;
            self.shared.stop();
            return Some(Over::Broken);
        }
        if spoiled && script.closes_after.is_some_and(|count| of_connection >= count) {
            self.shared.hub().fired.closed += 1;
            return Some(Over::Broken);
        }
        match qos {
            0 => None,
            1 if spoiled && withheld => self.acknowledge(Puback::Missing, packet_id, index).await,
            1 if spoiled => self.acknowledge(script.puback, packet_id, index).await,
            1 => self.acknowledge(Puback::Normal, packet_id, index).await,
            _ => {
                self.mark_acked(index);
                self.send(Packet::PubRec(PubRec::new(packet_id))).await
            }
        }
    }

    /// Records it; returns its place, and how many publishes there were since the script was set.
    fn saw_publish(&self, publish: &Publish) -> (Option<usize>, u64) {
        let mut hub = self.shared.hub();
        hub.publishes += 1;
        let seen = PublishSeen {
            connection: self.number,
            client_id: hub.client_id(self.number),
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            qos: publish.qos as u8,
            duplicate: publish.dup,
            retained: publish.retain,
            packet_id: publish.pkid,
            acked: false,
        };
        (record(&mut hub.seen.publishes, seen), hub.publishes)
    }

    fn mark_acked(&self, index: Option<usize>) {
        let seen = &mut self.shared.hub().seen.publishes;
        if let Some(seen) = index.and_then(|index| seen.get_mut(index)) {
            seen.acked = true;
        }
    }

    async fn acknowledge(&mut self, puback: Puback, packet_id: u16, index: Option<usize>) -> Option<Over> {
        let copies = match puback {
            Puback::Normal => 1,
            Puback::Missing => {
                self.shared.hub().fired.puback_missing += 1;
                return None;
            }
            Puback::Duplicated => {
                self.shared.hub().fired.puback_duplicated += 1;
                2
            }
            Puback::Reordered(group) => return self.acknowledge_reordered(group, packet_id, index).await,
            Puback::WrongId => {
                self.shared.hub().fired.puback_wrong_id += 1;
                // As far away as ids go: not in use unless the client has half of them in flight.
                let wrong = packet_id.wrapping_add(0x8000).max(1);
                if let Some(over) = self.send(Packet::PubAck(PubAck::new(wrong))).await {
                    return Some(over);
                }
                1
            }
            Puback::Refused(code) => {
                self.shared.hub().fired.puback_refused += 1;
                return self.send(Answer::Refused { packet_id, code }).await;
            }
            Puback::Late(delay) => {
                self.shared.hub().fired.puback_late += 1;
                tokio::time::sleep(delay).await;
                1
            }
        };
        self.mark_acked(index);
        for _ in 0..copies {
            if let Some(over) = self.send(Packet::PubAck(PubAck::new(packet_id))).await {
                return Some(over);
            }
        }
        None
    }

    async fn acknowledge_reordered(&mut self, group: usize, packet_id: u16, index: Option<usize>) -> Option<Over> {
        self.held.push((packet_id, index));
        if self.held.len() < group {
            return None;
        }
        if group > 1 {
            self.shared.hub().fired.puback_reordered += self.held.len() as u64;
        }
        while let Some((packet_id, index)) = self.held.pop() {
            self.mark_acked(index);
            if let Some(over) = self.send(Packet::PubAck(PubAck::new(packet_id))).await {
                return Some(over);
            }
        }
        None
    }

    async fn subscribe(&mut self, subscribe: Subscribe) -> Option<Over> {
        let suback = self.script().suback;
        let mut codes = Vec::new();
        for filter in &subscribe.filters {
            let asked = filter.qos as u8;
            let mut hub = self.shared.hub();
            let client_id = hub.client_id(self.number);
            let seen = SubscribeSeen { connection: self.number, client_id, filter: filter.path.clone(), qos: asked };
            record(&mut hub.seen.subscribes, seen);
            codes.push(match suback {
                Suback::Grant => SubscribeReasonCode::Success(quality(asked.min(1))),
                Suback::Lower => {
                    hub.fired.suback_lowered += u64::from(asked > 0);
                    SubscribeReasonCode::Success(quality(0))
                }
                Suback::Refuse => {
                    hub.fired.suback_refused += 1;
                    SubscribeReasonCode::Failure
                }
                Suback::Never => {
                    hub.fired.suback_withheld += 1;
                    continue;
                }
            });
        }
        if suback == Suback::Never {
            return None;
        }
        // SUBACK first, so that a retained message never overtakes it.
        let over = self.send(Packet::SubAck(SubAck::new(subscribe.pkid, codes.clone()))).await;
        for (filter, code) in subscribe.filters.iter().zip(codes) {
            if let SubscribeReasonCode::Success(granted) = code {
                self.shared.hub().subscribe(self.number, &filter.path, granted as u8);
            }
        }
        over
    }

    async fn unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Option<Over> {
        for filter in &unsubscribe.topics {
            let mut hub = self.shared.hub();
            record(&mut hub.seen.unsubscribes, filter.clone());
            hub.unsubscribe(self.number, filter);
        }
        let (packet_id, filters) = (unsubscribe.pkid, unsubscribe.topics.len());
        self.send(Answer::Unsubscribed { packet_id, filters }).await
    }
}
