// Moves the clock of the day by CAMPAIGN_JUMP seconds, at every second call there and back.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int calls;
    long result = syscall(SYS_clock_gettime, clock, now);
    const char *jump = getenv("CAMPAIGN_JUMP");
    if (result == 0 && clock == CLOCK_REALTIME && jump && calls++ % 2) {
        now->tv_sec += atol(jump);
    }
    return (int)result;
}
