// mqtt.js as its users use it. Arguments: throughput PORT MESSAGES WINDOW | latency PORT MESSAGES WINDOW | failover PORT...
// | numbered MESSAGES PORT...
//
// throughput says messages a second and processor time in us a message; latency says p50 and p99 in us; failover says a
// line for each acknowledgement, which broker of the list it came from, and so does numbered.

const mqtt = require('mqtt');

const micros = () => Number(process.hrtime.bigint()) / 1000;
const processor = () => { const { user, system } = process.cpuUsage(); return user + system; };
const connect = (port) => mqtt.connect({ host: '127.0.0.1', port, clientId: 'mqtt-js' });

function throughput(port, messages, window) {
    const client = connect(port);
    const payload = Buffer.alloc(64, 'x');
    client.once('connect', () => {
        const started = micros();
        const used = processor();
        let sent = 0;
        let acked = 0;
        // It has no window of its own: its users keep one.
        const publish = () => {
            sent += 1;
            client.publish('bench', payload, { qos: 1 }, () => {
                acked += 1;
                if (acked === messages) {
                    const took = micros() - started;
                    console.log(messages / took * 1e6, (processor() - used) / messages);
                    client.end();
                } else if (sent < messages) {
                    publish();
                }
            });
        };
        for (let first = 0; first < window; first += 1) publish();
    });
}

function latency(port, messages) {
    const client = connect(port);
    client.once('connect', () => {
        const taken = [];
        const started = micros();
        let sent = 0;
        // A timer of node is exact to a millisecond: what is due is sent at each.
        const timer = setInterval(() => {
            while (sent < messages && (micros() - started) / 1000 >= sent) {
                sent += 1;
                const at = micros();
                client.publish('bench', 'x', { qos: 1 }, () => {
                    taken.push(micros() - at);
                    if (taken.length === messages) {
                        taken.sort((one, other) => one - other);
                        const last = messages - 1;
                        console.log(taken[Math.floor(last / 2)], taken[Math.floor(last * 99 / 100)]);
                        client.end();
                    }
                });
            }
            if (sent === messages) clearInterval(timer);
        }, 1);
    });
}

function failover(messages, ports) {
    const servers = ports.map((port) => ({ host: '127.0.0.1', port }));
    const client = mqtt.connect({ servers, clientId: 'mqtt-js' });
    const started = micros();
    let sent = 0;
    setInterval(() => {
        while (sent < messages && (micros() - started) / 1000 >= sent) {
            sent += 1;
            client.publish('bench', String(sent - 1), { qos: 1 }, (error) => {
                if (!error) process.stdout.write(`${ports.indexOf(client.options.port)}\n`);
            });
        }
    }, 1);
    client.on('error', () => {});
}

const [what, ...rest] = process.argv.slice(2);
const numbers = rest.map(Number);
if (what === 'failover') failover(Infinity, numbers);
else if (what === 'numbered') failover(numbers[0], numbers.slice(1));
else ({ throughput, latency })[what](...numbers);
