/* measure.c -- Runs a command and writes what it took into a file: wall and CPU seconds, peak KB, exit
 * status.
 *
 *   measure FILE COMMAND...
 *
 * The CPU time is that of the command and of all its descendants that it waited for; the peak is the largest
 * of them. A shell cannot do this: a child starts with its parent's peak, so the parent must be small. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double seconds(struct timeval t) {
  return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static int write_result(const char *path, double wall, const struct rusage *u, int status) {
  FILE *f = fopen(path, "w");
  if (!f) return 127;
  fprintf(f, "%.6f %.6f %ld %d\n", wall, seconds(u->ru_utime) + seconds(u->ru_stime), u->ru_maxrss, status);
  return fclose(f) == 0 ? status : 127;
}

int main(int argc, char **argv) {
  struct rusage usage;
  int status = 0;
  if (argc < 3) return 2;
  double started = now();
  pid_t pid = vfork();
  if (pid == 0) {
    execvp(argv[2], argv + 2);
    _exit(127);
  }
  if (pid < 0 || wait4(pid, &status, 0, &usage) != pid) return 127;
  double wall = now() - started;
  return write_result(argv[1], wall, &usage,
                      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}
