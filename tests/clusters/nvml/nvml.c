/* A stand-in for libnvidia-ml.so.1 with the functions that are called of it: four devices, the first one divided into
 * two instances; devices 0 and 1 are near to cores 0-3, 2 and 3 to cores 64-67. A handle is a number and one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, COUNT = 4, INSTANCE = 100 };
typedef void *device_t;

static device_t handle(long number) { return (device_t)(number + 1); }
static long number(device_t device) { return (long)device - 1; }

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    if (index >= COUNT) return INVALID;
    *device = handle(index);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    long found = atol(uuid + 4);
    if (strncmp(uuid, "MIG-", 4) == 0) *device = handle(INSTANCE + found);
    else if (found < COUNT) *device = handle(found);
    else return NOT_FOUND;
    return OK;
}

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length) {
    long found = number(device);
    snprintf(uuid, length, found < INSTANCE ? "GPU-%ld" : "MIG-%ld", found % INSTANCE);
    return OK;
}

int nvmlDeviceGetMigMode(device_t device, unsigned *now, unsigned *pending) {
    *now = *pending = number(device) == 0;
    return number(device) == 1 ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count) { *count = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *instance) {
    if (index > 1) return NOT_FOUND;
    *instance = handle(INSTANCE + index);
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t instance, device_t *device) {
    *device = handle(0);
    return OK;
}

int nvmlDeviceGetCpuAffinity(device_t device, unsigned words, unsigned long *masks) {
    if (number(device) >= INSTANCE) return NOT_SUPPORTED;
    memset(masks, 0, words * sizeof *masks);
    if (number(device) < 2) masks[0] = 0xf;
    else if (words > 1) masks[1] = 0xf;
    return OK;
}
