/* Paho C (the asynchronous library) as its users use it.
 * Arguments: throughput PORT MESSAGES WINDOW | latency PORT MESSAGES WINDOW | failover PORT...
 *
 * throughput says messages a second and processor time in us a message; latency says p50 and p99 in us; failover says a
 * line for each acknowledgement, which broker of the list it came from. */

#include <MQTTAsync.h>
#include <arpa/inet.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 8

static MQTTAsync client;
static sem_t connected, room, done;
static int messages, acked;
static double *taken;
static char *servers[MOST];
static int server_count, active;

static double micros(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static double processor(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + used.ru_utime.tv_usec + used.ru_stime.tv_usec;
}

static void find_server(void);

static void on_connected(void *context, char *cause)
{
    (void)context;
    (void)cause;
    find_server();
    sem_post(&connected);
}

static int on_message(void *context, char *topic, int length, MQTTAsync_message *message)
{
    (void)context;
    (void)length;
    MQTTAsync_freeMessage(&message);
    MQTTAsync_free(topic);
    return 1;
}

static void on_acked(void *context, MQTTAsync_successData *data)
{
    (void)data;
    if (taken)
        taken[acked] = micros() - *(double *)context;
    free(context);
    sem_post(&room);
    if (++acked == messages)
        sem_post(&done);
}

/* It does not say where it reconnected to; the kernel does. */
static void find_server(void)
{
    for (int file = 3; file < 64; file++) {
        struct sockaddr_in address;
        socklen_t length = sizeof address;
        if (getpeername(file, (struct sockaddr *)&address, &length) != 0 || address.sin_family != AF_INET)
            continue;
        for (int index = 0; index < server_count; index++)
            if (atoi(strrchr(servers[index], ':') + 1) == ntohs(address.sin_port))
                active = index;
    }
}

static void on_acked_by(void *context, MQTTAsync_successData *data)
{
    (void)context;
    (void)data;
    printf("%d\n", active);
}

static void start(int window)
{
    MQTTAsync_createOptions creating = MQTTAsync_createOptions_initializer;
    MQTTAsync_connectOptions connecting = MQTTAsync_connectOptions_initializer;
    creating.sendWhileDisconnected = 1;
    creating.maxBufferedMessages = 100000;
    if (MQTTAsync_createWithOptions(&client, servers[0], "paho-c", MQTTCLIENT_PERSISTENCE_NONE, NULL, &creating)
        != MQTTASYNC_SUCCESS)
        exit(1);
    MQTTAsync_setCallbacks(client, NULL, NULL, on_message, NULL);
    MQTTAsync_setConnected(client, NULL, on_connected);
    connecting.maxInflight = window;
    connecting.automaticReconnect = 1;
    connecting.serverURIs = servers;
    connecting.serverURIcount = server_count;
    sem_init(&connected, 0, 0);
    if (MQTTAsync_connect(client, &connecting) != MQTTASYNC_SUCCESS)
        exit(1);
    sem_wait(&connected);
}

static int publish(const void *payload, int length, MQTTAsync_onSuccess *then)
{
    MQTTAsync_responseOptions response = MQTTAsync_responseOptions_initializer;
    response.onSuccess = then;
    if (then == on_acked) {
        double *at = malloc(sizeof *at);
        *at = micros();
        response.context = at;
    }
    return MQTTAsync_send(client, "bench", length, payload, 1, 0, &response);
}

static int ascending(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

static void throughput(int window)
{
    char payload[64];
    double started, used;
    memset(payload, 'x', sizeof payload);
    sem_init(&room, 0, window);
    started = micros();
    used = processor();
    for (int sent = 0; sent < messages; sent++) {
        sem_wait(&room);
        while (publish(payload, sizeof payload, on_acked) != MQTTASYNC_SUCCESS)
            usleep(100);
    }
    sem_wait(&done);
    printf("%f %f\n", messages / (micros() - started) * 1e6, (processor() - used) / messages);
}

static void latency(void)
{
    double started = micros();
    taken = calloc(messages, sizeof *taken);
    sem_init(&room, 0, 0);
    for (int sent = 0; sent < messages; sent++) {
        double due = started + sent * 1000.0 - micros();
        if (due > 0)
            usleep(due);
        publish("x", 1, on_acked);
    }
    sem_wait(&done);
    qsort(taken, messages, sizeof *taken, ascending);
    printf("%f %f\n", taken[(messages - 1) / 2], taken[(messages - 1) * 99 / 100]);
}

static void failover(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        usleep(1000);
        publish("x", 1, on_acked_by);
    }
}

int main(int count, char **arguments)
{
    int several, window = 100;
    if (count < 3)
        return 2;
    several = strcmp(arguments[1], "failover") == 0;
    if (!several && count < 5)
        return 2;
    for (int index = 2; index < (several ? count : 3) && server_count < MOST; index++) {
        char *server = malloc(64);
        snprintf(server, 64, "tcp://127.0.0.1:%s", arguments[index]);
        servers[server_count++] = server;
    }
    if (!several) {
        messages = atoi(arguments[3]);
        window = atoi(arguments[4]);
    }
    sem_init(&done, 0, 0);
    start(window);
    if (several)
        failover();
    else if (strcmp(arguments[1], "latency") == 0)
        latency();
    else
        throughput(window);
    MQTTAsync_destroy(&client);
    return 0;
}
