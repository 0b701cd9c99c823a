/* system.c -- Clocks, the terminal, and who runs this process. */
#include "system.h"

#include <lauxlib.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "loop.h"
#include "timeline.h"

/* core.now() monotonic, core.time() since the epoch: both in seconds */
static int l_now(lua_State *L) {
  lua_pushnumber(L, timeline_on() ? timeline_now() : loop_now());
  return 1;
}

static int l_time(lua_State *L) {
  struct timespec t;
  if (timeline_on()) {
    lua_pushnumber(L, timeline_wall());
    return 1;
  }
  clock_gettime(CLOCK_REALTIME, &t);
  lua_pushnumber(L, (double)t.tv_sec + (double)t.tv_nsec / 1e9);
  return 1;
}

/* core.virtual_time(wall): time begins at 0 and goes on when everybody waits; wall is the time of day.
 * core.virtual_time(nil): it is real again. */
static int l_virtual_time(lua_State *L) {
  if (!lua_isnoneornil(L, 1)) timeline_begin(luaL_checknumber(L, 1));
  else if (!timeline_end()) return luaL_error(L, "tasks still wait in virtual time");
  return 0;
}

/* core.terminal(fd) -> columns, rows | nil when it is none */
static int l_terminal(lua_State *L) {
  struct winsize size;
  int fd = (int)luaL_checkinteger(L, 1);
  if (!isatty(fd)) return 0;
  bool known = ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  lua_pushinteger(L, known ? size.ws_col : 80);
  lua_pushinteger(L, known && size.ws_row > 0 ? size.ws_row : 24);
  return 2;
}

/* core.whoami() -> {user, home, host, pid} */
static int l_whoami(lua_State *L) {
  char host[256] = "";
  struct passwd *p = getpwuid(getuid());
  const char *home = getenv("HOME");
  gethostname(host, sizeof host - 1);
  lua_createtable(L, 0, 4);
  lua_pushstring(L, p ? p->pw_name : "?");
  lua_setfield(L, -2, "user");
  lua_pushstring(L, home && *home ? home : p ? p->pw_dir : "/");
  lua_setfield(L, -2, "home");
  lua_pushstring(L, host);
  lua_setfield(L, -2, "host");
  lua_pushinteger(L, getpid());
  lua_setfield(L, -2, "pid");
  return 1;
}

/* core.echo(fd, on): whether the terminal shows what is typed */
static int l_echo(lua_State *L) {
  struct termios settings;
  int fd = (int)luaL_checkinteger(L, 1);
  bool on = lua_toboolean(L, 2);
  if (tcgetattr(fd, &settings) != 0) return 0;
  if (on) settings.c_lflag |= ECHO;
  else settings.c_lflag &= (tcflag_t)~ECHO;
  tcsetattr(fd, TCSANOW, &settings);
  return 0;
}

/* core.ask_secret(prompt) -> what was typed, unseen, on the terminal | nil, err; blocks the loop, once,
 * before a run */
static int l_ask_secret(lua_State *L) {
  char line[1024];
  struct termios before, silent;
  const char *prompt = luaL_checkstring(L, 1);
  FILE *tty = fopen("/dev/tty", "r+e");
  if (!tty) return push_error(L, "terminal", NULL, "%s no terminal to ask on", prompt);
  tcgetattr(fileno(tty), &before);
  silent = before;
  silent.c_lflag &= (tcflag_t)~ECHO;
  tcsetattr(fileno(tty), TCSAFLUSH, &silent); /* before the prompt: an answer may come at once */
  fputs(prompt, tty);
  fflush(tty);
  char *read = fgets(line, sizeof line, tty);
  tcsetattr(fileno(tty), TCSAFLUSH, &before);
  fputs("\n", tty);
  fclose(tty);
  if (!read) return push_error(L, "terminal", NULL, "%s nothing was entered", prompt);
  lua_pushlstring(L, line, strcspn(line, "\n"));
  explicit_bzero(line, sizeof line);
  return 1;
}

void push_system_functions(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"now", l_now},           {"time", l_time},     {"virtual_time", l_virtual_time},
      {"terminal", l_terminal}, {"whoami", l_whoami}, {"ask_secret", l_ask_secret},
      {"echo", l_echo},         {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
