/* fs.c -- Directories, renames and durable appends on the controller. */
#include "fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "class.h"
#include "error.h"
#include "loop.h"
#include "memory.h"
#include "task.h"

#define LOG_FILE "deployrt.LogFile"

static int push_errno(lua_State *L, const char *what) {
  const char *code = errno == ENOENT   ? "missing"
                     : errno == EEXIST ? "exists"
                     : errno == ENOSPC ? "full"
                                       : "system";
  return push_error(L, code, NULL, "%s: %s", what, strerror(errno));
}

static int push_success(lua_State *L) {
  lua_pushboolean(L, 1);
  return 1;
}

static bool is_directory(const char *path) {
  struct stat s;
  return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* fs.mkdir(path, mode) -> true | nil, err: makes one directory, mode 0700 by default; an existing one is fine
 */
static int l_mkdir(lua_State *L) {
  const char *path = check_text(L, 1, "a path");
  mode_t mode = (mode_t)luaL_optinteger(L, 2, 0700);
  int failure = mkdir(path, mode) == 0 ? 0 : errno;
  if (failure == 0 || (failure == EEXIST && is_directory(path))) return push_success(L);
  errno = failure;
  return push_errno(L, path);
}

/* fs.stat(path) -> {type = "file"|"directory"|"other", size, mode, mtime} | nil, err */
static int l_stat(lua_State *L) {
  struct stat s;
  const char *path = check_text(L, 1, "a path");
  if (stat(path, &s) != 0) return push_errno(L, path);
  lua_createtable(L, 0, 4);
  lua_pushstring(L, S_ISREG(s.st_mode) ? "file" : S_ISDIR(s.st_mode) ? "directory" : "other");
  lua_setfield(L, -2, "type");
  lua_pushinteger(L, s.st_size);
  lua_setfield(L, -2, "size");
  lua_pushinteger(L, s.st_mode & 07777);
  lua_setfield(L, -2, "mode");
  lua_pushinteger(L, s.st_mtime);
  lua_setfield(L, -2, "mtime");
  return 1;
}

/* fs.list(path) -> sorted names without "." and ".." | nil, err */
static int l_list(lua_State *L) {
  const char *path = check_text(L, 1, "a path");
  struct dirent **found;
  int count = scandir(path, &found, NULL, alphasort);
  if (count < 0) return push_errno(L, path);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    const char *name = found[i]->d_name;
    if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
      lua_pushstring(L, name);
      lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    }
    free(found[i]);
  }
  free(found);
  return 1;
}

/* fs.glob(pattern) -> sorted paths; none where a directory cannot be read */
static int l_glob(lua_State *L) {
  const char *pattern = check_text(L, 1, "a pattern");
  glob_t found = {0};
  glob(pattern, 0, NULL, &found);
  lua_createtable(L, (int)found.gl_pathc, 0);
  for (size_t i = 0; i < found.gl_pathc; i++) {
    lua_pushstring(L, found.gl_pathv[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  globfree(&found);
  return 1;
}

static bool write_all(int fd, const char *data, size_t length) {
  while (length > 0) {
    ssize_t n = write(fd, data, length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    data += n;
    length -= (size_t)n;
  }
  return true;
}

/* A device or a pipe would be replaced by a file, and whoever reads from it would wait. */
static bool may_replace(const char *path) {
  struct stat s;
  return stat(path, &s) != 0 || S_ISREG(s.st_mode);
}

/* fs.write(path, text, mode?) -> true | nil, err: aside, synced, renamed; what is no file is left as it is */
static int l_write(lua_State *L) {
  size_t length;
  const char *path = check_text(L, 1, "a path");
  const char *text = luaL_checklstring(L, 2, &length);
  int mode = (int)luaL_optinteger(L, 3, 0600);
  if (!may_replace(path)) return push_error(L, "exists", NULL, "%s: it is there, and no file", path);
  const char *aside = lua_pushfstring(L, "%s.%d.part", path, (int)getpid());
  int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) return push_errno(L, aside);
  bool written = write_all(fd, text, length) && fdatasync(fd) == 0;
  int failure = errno;
  close(fd);
  if (written && rename(aside, path) == 0) return push_success(L);
  if (!written) errno = failure;
  failure = errno;
  unlink(aside);
  errno = failure;
  return push_errno(L, path);
}

/* fs.remove(path) -> true | nil, err: a file or an empty directory; a missing one is fine */
static int l_remove(lua_State *L) {
  const char *path = check_text(L, 1, "a path");
  if (unlink(path) != 0 && errno != ENOENT && (errno != EISDIR || rmdir(path) != 0))
    return push_errno(L, path);
  return push_success(L);
}

static int l_realpath(lua_State *L) {
  const char *path = check_text(L, 1, "a path");
  char *real = realpath(path, NULL);
  if (!real) return push_errno(L, path);
  lua_pushstring(L, real);
  free(real);
  return 1;
}

/* A file that is only appended to; sync() waits on a thread, so that many writers share one fdatasync. */
typedef struct LogFile {
  int fd;
  uv_fs_t *request;
  int synced; /* 0, or what the last sync failed with */
  Waiter waiter;
} LogFile;

static int l_append(lua_State *L) {
  const char *path = check_text(L, 1, "a path");
  LogFile *f = lua_newuserdatauv(L, sizeof *f, 0);
  memset(f, 0, sizeof *f);
  f->fd = -1;
  luaL_setmetatable(L, LOG_FILE);
  f->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  return f->fd < 0 ? push_errno(L, path) : 1;
}

static LogFile *check_log_file(lua_State *L) {
  LogFile *f = luaL_checkudata(L, 1, LOG_FILE);
  luaL_argcheck(L, f->fd >= 0, 1, "this file was closed");
  return f;
}

static int l_log_write(lua_State *L) {
  size_t length;
  LogFile *f = check_log_file(L);
  const char *text = luaL_checklstring(L, 2, &length);
  return write_all(f->fd, text, length) ? push_success(L) : push_errno(L, "journal");
}

/* The request outlives a canceled wait: it frees itself. */
static void on_synced(uv_fs_t *request) {
  LogFile *f = request->data;
  if (f) {
    f->request = NULL;
    f->synced = (int)request->result;
    task_wake(&f->waiter);
  }
  uv_fs_req_cleanup(request);
  free(request);
}

static int sync_step(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  LogFile *f = (LogFile *)ctx;
  if (f->request) { /* canceled; the data are on their way all the same */
    f->request->data = NULL;
    f->request = NULL;
    return push_interruption(L, NULL, "journal");
  }
  if (f->synced == 0) return push_success(L);
  errno = -f->synced;
  return push_errno(L, "journal");
}

static int l_log_sync(lua_State *L) {
  LogFile *f = check_log_file(L);
  check_can_wait(L);
  luaL_argcheck(L, !f->request, 1, "a sync of this file is under way");
  f->request = memory_new(sizeof *f->request);
  f->request->data = f;
  uv_fs_fdatasync(loop_get(), f->request, f->fd, on_synced);
  return task_wait(L, &f->waiter, -1, (lua_KContext)f, sync_step);
}

static int l_log_close(lua_State *L) {
  LogFile *f = luaL_checkudata(L, 1, LOG_FILE);
  if (f->request) f->request->data = NULL;
  f->request = NULL;
  if (f->fd >= 0) close(f->fd);
  f->fd = -1;
  return 0;
}

void push_fs_functions(lua_State *L) {
  static const luaL_Reg functions[] = {{"mkdir", l_mkdir},   {"stat", l_stat},     {"list", l_list},
                                       {"write", l_write},   {"remove", l_remove}, {"realpath", l_realpath},
                                       {"append", l_append}, {"glob", l_glob},     {NULL, NULL}};
  static const luaL_Reg methods[] = {
      {"write", l_log_write}, {"sync", l_log_sync}, {"close", l_log_close}, {NULL, NULL}};
  push_class(L, LOG_FILE, methods, l_log_close);
  luaL_newlib(L, functions);
}
