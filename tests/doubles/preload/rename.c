/* A file system on which a rename is no single act, as a mounted bucket's: a folder is copied file by file under its new name and the
 * old one removed after, file by file; a file is copied whole, and the old one removed after. With RLVR_BREAK_AT=N the process is
 * killed at the Nth place within such a rename: half through a file, after a file, before a removal. To be preloaded. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void place(void) {
    static atomic_long places;
    const char *at = getenv("RLVR_BREAK_AT");
    if (at && atomic_fetch_add(&places, 1) + 1 == atol(at)) kill(getpid(), SIGKILL);
}

static int copy(const char *from, const char *to, int in_view) {
    static char buffer[1 << 16];
    char aside[PATH_MAX];
    snprintf(aside, sizeof aside, in_view ? "%s" : "%s.~copy", to);
    int in = open(from, O_RDONLY), out = open(aside, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (in < 0 || out < 0) return -1;
    struct stat found;
    fstat(in, &found);
    off_t done = 0;
    ssize_t got;
    while ((got = read(in, buffer, sizeof buffer)) > 0) {
        ssize_t half = done == 0 ? got / 2 : 0;
        if (write(out, buffer, half) != half) return -1;
        if (in_view && done == 0) place();
        if (write(out, buffer + half, got - half) != got - half) return -1;
        done += got;
    }
    close(in);
    close(out);
    if (!in_view) {
        int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
        if (real(aside, to)) return -1;
    }
    place();
    return 0;
}

/* Copies, or removes where `to` is null. */
static int walk(const char *from, const char *to) {
    if (to && mkdir(to, 0755) && errno != EEXIST) return -1;
    DIR *folder = opendir(from);
    if (!folder) return -1;
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char a[PATH_MAX], b[PATH_MAX];
        snprintf(a, sizeof a, "%s/%s", from, entry->d_name);
        snprintf(b, sizeof b, "%s/%s", to ? to : "", entry->d_name);
        struct stat found;
        if (lstat(a, &found)) return -1;
        if (S_ISDIR(found.st_mode)) {
            if (walk(a, to ? b : NULL)) return -1;
        } else if (to) {
            if (copy(a, b, 1)) return -1;
        } else {
            if (unlink(a)) return -1;
            place();
        }
    }
    closedir(folder);
    return to ? 0 : rmdir(from);
}

int rename(const char *from, const char *to) {
    struct stat found;
    if (lstat(from, &found)) return -1;
    if (S_ISDIR(found.st_mode)) return walk(from, to) || walk(from, NULL) ? -1 : 0;
    return copy(from, to, 0) || unlink(from) ? -1 : 0;
}

/* No links, either. */
int link(const char *from, const char *to) {
    (void)from, (void)to;
    errno = EPERM;
    return -1;
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    (void)a, (void)b, (void)flags;
    return link(from, to);
}
