"""paho-python as its users use it. Arguments: throughput PORT MESSAGES WINDOW | latency PORT MESSAGES WINDOW | failover PORT...

throughput says messages a second and processor time in us a message; latency says p50 and p99 in us; failover says a
line for each acknowledgement, which broker of the list it came from.
"""

import resource
import sys
import threading
import time

import paho.mqtt.client as mqtt


def client(window):
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="paho-python", clean_session=True)
    made.max_inflight_messages_set(window)
    return made


def connected(port, window):
    ready = threading.Event()
    made = client(window)
    made.on_connect = lambda *_: ready.set()
    made.connect("127.0.0.1", port)
    made.loop_start()
    ready.wait(10)
    return made


def processor():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def throughput(port, messages, window):
    made = connected(port, window)
    acked, done = [0], threading.Event()

    def on_publish(*_):
        acked[0] += 1
        if acked[0] == messages:
            done.set()

    made.on_publish = on_publish
    payload = b"x" * 64
    started, used = time.perf_counter(), processor()
    for _ in range(messages):
        made.publish("bench", payload, qos=1)
    done.wait(50)
    took = time.perf_counter() - started
    print(messages / took, (processor() - used) * 1e6 / messages)
    made.disconnect()


def latency(port, messages, window):
    made = connected(port, window)
    sent, taken, done = {}, [], threading.Event()
    lock = threading.Lock()

    def on_publish(_client, _data, mid, *_):
        now = time.perf_counter()
        with lock:
            taken.append((now - sent.pop(mid)) * 1e6)
        if len(taken) == messages:
            done.set()

    made.on_publish = on_publish
    due = time.perf_counter()
    for _ in range(messages):
        due += 0.001
        time.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        with lock:
            sent[made.publish("bench", b"x", qos=1).mid] = now
    done.wait(20)
    taken.sort()
    print(taken[(len(taken) - 1) // 2], taken[(len(taken) - 1) * 99 // 100])
    made.disconnect()


def failover(ports):
    # It takes one broker: its users name the next one when they hear of the loss, and its loop connects there after
    # its own shortest pause, a second.
    active = [0]
    made = client(100)

    def on_disconnect(*_):
        active[0] = (active[0] + 1) % len(ports)
        made.connect_async("127.0.0.1", ports[active[0]])

    made.on_disconnect = on_disconnect
    made.on_publish = lambda *_: print(active[0], flush=True)
    made.connect("127.0.0.1", ports[0])
    made.loop_start()
    while True:
        time.sleep(0.001)
        made.publish("bench", b"x", qos=1)


what, numbers = sys.argv[1], [int(argument) for argument in sys.argv[2:]]
if what == "failover":
    failover(numbers)
else:
    {"throughput": throughput, "latency": latency}[what](*numbers)
