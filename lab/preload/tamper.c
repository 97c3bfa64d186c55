/*
 * Makes a process's syncs slow or fail, and sets its wall clock forward or back, while it runs.
 *
 * Loaded by LD_PRELOAD. NWK_TAMPER names a file of three 64-bit integers in this machine's byte order, which
 * lab/src/tamper.rs writes and this library maps: an errno for fsync and fdatasync (0: none), how long each of them
 * takes before anything else (milliseconds), and what is added to the wall clock (seconds). The monotonic clock stays
 * as it is, as it does when an administrator sets the time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *control;

enum { SYNC_ERROR, SYNC_DELAY_MS, CLOCK_OFFSET_S, WORDS };

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("NWK_TAMPER");
	int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *mapped = mmap(NULL, WORDS * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		control = mapped;
}

static int64_t word(int which)
{
	return control ? control[which] : 0;
}

/* Whether the sync is to fail; it was delayed by then. */
static int spoiled(void)
{
	int64_t delay = word(SYNC_DELAY_MS);
	if (delay > 0) {
		struct timespec pause = { .tv_sec = delay / 1000, .tv_nsec = delay % 1000 * 1000000 };
		while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
			;
	}
	errno = (int)word(SYNC_ERROR);
	return errno != 0;
}

#define SYNC(name) \
	int name(int fd) \
	{ \
		static int (*real)(int); \
		if (!real) \
			real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
		return spoiled() ? -1 : real(fd); \
	}

SYNC(fsync)
SYNC(fdatasync)

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(clock, now);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += word(CLOCK_OFFSET_S);
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	static int (*real)(struct timeval *, void *);
	if (!real)
		real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
	int result = real(now, zone);
	if (result == 0)
		now->tv_sec += word(CLOCK_OFFSET_S);
	return result;
}

time_t time(time_t *now)
{
	struct timespec precise;
	clock_gettime(CLOCK_REALTIME, &precise);
	if (now)
		*now = precise.tv_sec;
	return precise.tv_sec;
}
