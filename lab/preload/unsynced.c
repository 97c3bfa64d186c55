/*
 * Remembers what a process wrote and did not sync, so that it can be taken back once the process was killed: what a
 * loss of power does, and SIGKILL alone does not (the page cache survives it).
 *
 * Loaded by LD_PRELOAD. Every write, truncation, creation and rename below the directory NWK_UNSYNCED_ROOT first puts
 * a record with the state before it into the file NWK_UNSYNCED_LOG; every successful fsync or fdatasync puts a record
 * that makes the earlier ones of that file (or directory) durable. lab/src/unsynced.rs reads the log and undoes
 * the rest, newest first.
 *
 * What a file system promises is taken as ext4 and XFS have it: a synced file keeps its name; a rename needs a sync of
 * the directory. Removals count as durable at once. Memory maps, copy_file_range and io_uring are not followed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITTEN = 1, CREATED = 2, RENAMED = 3, SYNCED = 4 };

/* As lab/src/unsynced.rs reads it: little-endian, no padding, followed by `text` and `data` bytes. */
struct record {
	uint32_t kind;
	uint32_t text;      /* bytes of path: CREATED the file; RENAMED from, NUL, to */
	uint64_t sequence;
	uint64_t device;
	uint64_t inode;
	uint64_t directory; /* inode of the directory whose sync makes CREATED and RENAMED durable */
	uint64_t offset;
	uint64_t size;      /* WRITTEN: of the file before; SYNCED: the sequence up to which; RENAMED: 1 = replaced a file */
	uint64_t data;      /* bytes that were there before */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t sequence;
static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;

#define REAL(result, name, ...) \
	typedef result (*name##_type)(__VA_ARGS__); \
	static name##_type real_##name(void) { \
		static name##_type found; \
		if (!found) \
			found = (name##_type)dlsym(RTLD_NEXT, #name); \
		return found; \
	}

REAL(int, open64, const char *, int, ...)
REAL(int, openat64, int, const char *, int, ...)
REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)
REAL(ssize_t, writev, int, const struct iovec *, int)
REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t)
REAL(int, ftruncate64, int, off64_t)
REAL(int, fsync, int)
REAL(int, fdatasync, int)
REAL(int, renameat2, int, const char *, int, const char *, unsigned int)

__attribute__((constructor)) static void begin(void)
{
	const char *directory = getenv("NWK_UNSYNCED_ROOT");
	const char *log = getenv("NWK_UNSYNCED_LOG");
	if (!directory || !log || !realpath(directory, root))
		return;
	root_length = strlen(root);
	log_fd = real_open64()(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	/* Above every number that an earlier process put into this log. */
	sequence = (uint64_t)lseek64(log_fd, 0, SEEK_END);
}

static void put(const void *bytes, size_t length)
{
	const char *next = bytes;
	while (length > 0) {
		ssize_t written = real_write()(log_fd, next, length);
		if (written <= 0)
			abort(); /* a log with a hole would undo the wrong thing */
		next += written;
		length -= (size_t)written;
	}
}

static int below_root(const char *path)
{
	return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

/* Whether writes to fd are followed: it is a regular file below the root. */
static int followed(int fd, struct stat *status)
{
	char link[64], path[PATH_MAX];
	if (log_fd < 0 || fstat(fd, status) != 0 || !S_ISREG(status->st_mode))
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	if (length <= 0)
		return 0;
	path[length] = '\0';
	return below_root(path);
}

/* Before bytes offset .. offset+length of fd change: what is there now. Called with the lock held. */
static void remember(int fd, const struct stat *status, uint64_t offset, uint64_t length)
{
	uint64_t size = (uint64_t)status->st_size;
	uint64_t end = offset + length < size ? offset + length : size;
	uint64_t old = end > offset ? end - offset : 0;
	char *buffer = malloc(old + 1), path[64];
	/* The file may be open for writing only. */
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int reader = real_open64()(path, O_RDONLY | O_CLOEXEC);
	uint64_t got = 0;
	while (buffer && reader >= 0 && got < old) {
		ssize_t count = pread64(reader, buffer + got, old - got, (off64_t)(offset + got));
		if (count <= 0)
			break;
		got += (uint64_t)count;
	}
	if (!buffer || reader < 0 || got != old)
		abort();
	close(reader);
	struct record record = {
		.kind = WRITTEN, .sequence = ++sequence, .device = status->st_dev, .inode = status->st_ino,
		.offset = offset, .size = size, .data = old,
	};
	put(&record, sizeof record);
	put(buffer, old);
	free(buffer);
}

static uint64_t total(const struct iovec *parts, int count)
{
	uint64_t sum = 0;
	for (int i = 0; i < count; i++)
		sum += parts[i].iov_len;
	return sum;
}

/* Where a write without an offset goes. */
static uint64_t position(int fd, const struct stat *status)
{
	if (fcntl(fd, F_GETFL) & O_APPEND)
		return (uint64_t)status->st_size;
	return (uint64_t)lseek64(fd, 0, SEEK_CUR);
}

#define FOLLOWING(fd, offset, length, call) \
	struct stat status; \
	if (!followed(fd, &status)) \
		return call; \
	pthread_mutex_lock(&lock); \
	fstat(fd, &status); \
	remember(fd, &status, offset, length); \
	ssize_t result = call; \
	int error = errno; \
	pthread_mutex_unlock(&lock); \
	errno = error; \
	return result

ssize_t write(int fd, const void *bytes, size_t length)
{
	FOLLOWING(fd, position(fd, &status), length, real_write()(fd, bytes, length));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
	FOLLOWING(fd, (uint64_t)offset, length, real_pwrite64()(fd, bytes, length, offset));
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	return pwrite64(fd, bytes, length, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	FOLLOWING(fd, position(fd, &status), total(parts, count), real_writev()(fd, parts, count));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
	FOLLOWING(fd, (uint64_t)offset, total(parts, count), real_pwritev64()(fd, parts, count, offset));
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	return pwritev64(fd, parts, count, offset);
}

static int truncate_followed(int fd, off64_t size)
{
	/* Everything from the new end on; nothing when it grows. */
	FOLLOWING(fd, (uint64_t)size, UINT64_MAX / 2, real_ftruncate64()(fd, size));
}

int ftruncate64(int fd, off64_t size)
{
	return truncate_followed(fd, size);
}

int ftruncate(int fd, off_t size)
{
	return truncate_followed(fd, size);
}

static void durable(uint64_t device, uint64_t inode, uint64_t upto)
{
	struct record record = { .kind = SYNCED, .sequence = ++sequence, .device = device, .inode = inode, .size = upto };
	put(&record, sizeof record);
}

static int synced(int fd, int (*sync)(int))
{
	struct stat status;
	if (log_fd < 0 || fstat(fd, &status) != 0)
		return sync(fd);
	/* What is written while the sync runs is not covered by it. */
	pthread_mutex_lock(&lock);
	uint64_t upto = sequence;
	pthread_mutex_unlock(&lock);
	int result = sync(fd);
	if (result == 0) {
		pthread_mutex_lock(&lock);
		durable(status.st_dev, status.st_ino, upto);
		pthread_mutex_unlock(&lock);
	}
	return result;
}

int fsync(int fd)
{
	return synced(fd, real_fsync());
}

int fdatasync(int fd)
{
	return synced(fd, real_fdatasync());
}

/* The absolute path of a name, whose directory must exist: in `path`, with the directory's inode. */
static int resolve(int at, const char *name, char *path, uint64_t *directory)
{
	char copy[PATH_MAX], full[PATH_MAX], link[64];
	if (strlen(name) >= sizeof copy)
		return 0;
	if (name[0] != '/' && at != AT_FDCWD) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", at);
		ssize_t length = readlink(link, full, sizeof full - 1);
		if (length <= 0 || (size_t)length + strlen(name) + 2 > sizeof copy)
			return 0;
		full[length] = '\0';
		if (snprintf(copy, sizeof copy, "%s/%s", full, name) >= (int)sizeof copy)
			return 0;
	} else {
		strcpy(copy, name);
	}
	char *slash = strrchr(copy, '/');
	const char *last = slash ? slash + 1 : copy, *parent = slash ? copy : ".";
	char base[NAME_MAX + 1];
	if (strlen(last) > NAME_MAX)
		return 0;
	strcpy(base, last);
	if (slash)
		*slash = '\0';
	struct stat status;
	if (!realpath(parent[0] ? parent : "/", full) || stat(full, &status) != 0)
		return 0;
	*directory = status.st_ino;
	return snprintf(path, PATH_MAX, "%s/%s", full, base) < PATH_MAX && below_root(path);
}

static int opened(int at, const char *name, int flags, mode_t mode)
{
	char path[PATH_MAX];
	uint64_t directory;
	struct stat status;
	if (log_fd < 0 || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE ||
	    !resolve(at, name, path, &directory))
		return real_openat64()(at, name, flags, mode);
	pthread_mutex_lock(&lock);
	int existed = stat(path, &status) == 0;
	/* Truncation is done by us, so that it is remembered as any other. */
	int fd = real_openat64()(at, name, flags & ~O_TRUNC, mode);
	int error = errno;
	if (fd >= 0 && !existed && fstat(fd, &status) == 0) {
		/* The inode may have belonged to a file that is gone. */
		durable(status.st_dev, status.st_ino, sequence);
		struct record record = {
			.kind = CREATED, .text = (uint32_t)strlen(path), .sequence = ++sequence, .device = status.st_dev,
			.inode = status.st_ino, .directory = directory,
		};
		put(&record, sizeof record);
		put(path, record.text);
	}
	pthread_mutex_unlock(&lock);
	if (fd >= 0 && existed && (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY)
		ftruncate64(fd, 0);
	errno = error;
	return fd;
}

#define MODE(flags, mode) \
	mode_t mode = 0; \
	if ((flags) & (O_CREAT | O_TMPFILE)) { \
		va_list arguments; \
		va_start(arguments, flags); \
		mode = va_arg(arguments, mode_t); \
		va_end(arguments); \
	}

int open64(const char *name, int flags, ...)
{
	MODE(flags, mode)
	return opened(AT_FDCWD, name, flags, mode);
}

int open(const char *name, int flags, ...)
{
	MODE(flags, mode)
	return opened(AT_FDCWD, name, flags, mode);
}

int openat64(int at, const char *name, int flags, ...)
{
	MODE(flags, mode)
	return opened(at, name, flags, mode);
}

int openat(int at, const char *name, int flags, ...)
{
	MODE(flags, mode)
	return opened(at, name, flags, mode);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned int flags)
{
	char from_path[PATH_MAX], to_path[PATH_MAX];
	uint64_t from_directory, to_directory;
	if (log_fd < 0 || (flags & RENAME_EXCHANGE) || !resolve(from_at, from, from_path, &from_directory) ||
	    !resolve(to_at, to, to_path, &to_directory))
		return real_renameat2()(from_at, from, to_at, to, flags);
	pthread_mutex_lock(&lock);
	struct stat moved = { 0 }, replaced = { 0 };
	char *old = NULL;
	uint64_t size = 0;
	int existed = stat(to_path, &replaced) == 0 && S_ISREG(replaced.st_mode);
	stat(from_path, &moved);
	if (existed) {
		int reader = real_open64()(to_path, O_RDONLY | O_CLOEXEC);
		old = malloc((size_t)replaced.st_size + 1);
		while (old && reader >= 0 && size < (uint64_t)replaced.st_size) {
			ssize_t count = read(reader, old + size, (size_t)replaced.st_size - size);
			if (count <= 0)
				break;
			size += (uint64_t)count;
		}
		if (!old || reader < 0 || size != (uint64_t)replaced.st_size)
			abort();
		close(reader);
	}
	struct record record = {
		.kind = RENAMED, .text = (uint32_t)(strlen(from_path) + 1 + strlen(to_path)), .sequence = ++sequence,
		.device = moved.st_dev, .inode = moved.st_ino, .directory = to_directory, .size = (uint64_t)existed,
		.data = size,
	};
	put(&record, sizeof record);
	put(from_path, strlen(from_path) + 1);
	put(to_path, strlen(to_path));
	put(old, size);
	free(old);
	int result = real_renameat2()(from_at, from, to_at, to, flags);
	int error = errno;
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
	return renameat2(from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to)
{
	return renameat(AT_FDCWD, from, AT_FDCWD, to);
}
