/* Pass on the uniform events of a stream without the interpreter (DESIGN, 73).
 *
 * A `Poller` asks the epoll of `transport.EpollPoller` which of the router's sockets are readable. For an armed socket it
 * also reads, splits the chunks, finds the bytes before and after the text in each event, and writes the text to the
 * caller between two other strings. These four strings are a template that Python has proved for this one stream, with
 * the types of the closed schema. This file makes no decision of its own. It passes on the events of one read together;
 * an incomplete event waits for the rest. If any byte does not match chunk(event*)* with exactly these strings, it passes
 * on none of them, and Python gets everything that was read and not passed on.
 *
 * It writes to a duplicate of the caller's socket: if the original is closed, the number of the duplicate still belongs
 * to the same connection. It writes only while the loop's transport has no unsent bytes, so that the order of the bytes
 * is kept.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES 65536  /* as in shortcut.py */
#define MAX_READY 64      /* as _MAX_READY_SOCKETS in transport.py */
#define MAX_BOUNDS 32
#define MAX_REST 4096     /* an incomplete event is scanned again at each read: a longer one is left to the parser */
#define MAX_SIZE_DIGITS 6 /* of a chunk size; a longer one is left to the parser */
#define FRAMING 24        /* bytes for a chunk's size line and its end */

typedef unsigned char byte;

typedef struct {
    PyObject *transport, *before, *after, *new_before, *new_after;
    PyObject *get_unsent; /* the transport's get_write_buffer_size, bound */
    int caller;           /* a duplicate of the caller's socket */
    int handed;           /* Python reads this socket from now on */
    int error;            /* errno of the read: the kernel reports it once */
    size_t left;          /* bytes left of the current chunk, from `rest` on; 0: a size line comes next */
    byte *rest;           /* bytes read that are the beginning of an incomplete event or size line */
    size_t rest_size;
    size_t budget;        /* bytes that the answer may still have */
    long long events, bytes_in, bytes_out;  /* since `take`; bytes_in counts events without framing */
    double passed_at, seconds;
    unsigned counts[];    /* one more than `bounds_size` */
} Leg;

typedef struct {
    PyObject_HEAD
    int epoll, armed, max_armed, bounds_size, legs_size;
    Leg **legs;           /* by descriptor */
    double bounds[MAX_BOUNDS];
    byte *out, in[2 * READ_BYTES];
    size_t out_size;
} Poller;

static PyObject *s_get_write_buffer_size, *s_write;

enum { PLAIN, QUOTE, ESCAPE, TWO, THREE, FOUR, BAD };
static byte kinds[256];

static void fill_kinds(void) {
    for (int c = 0; c < 256; c++)
        kinds[c] = c < 0x20 || (c >= 0x80 && c < 0xC2) || c > 0xF4 ? BAD
                   : c == '"' ? QUOTE : c == '\\' ? ESCAPE : c < 0x80 ? PLAIN : c < 0xE0 ? TWO : c < 0xF0 ? THREE : FOUR;
}

/* Find the closing quote of a JSON string (RFC 8259, 7). 1: *at is at the quote. 0: the string is incomplete. -1: it has
 * bytes that our encoder would not write: invalid UTF-8 (RFC 3629, 4), control bytes, \u or \/. */
static int find_quote(const byte **at, const byte *end) {
    const byte *p = *at;
    while (p < end) {
        byte kind = kinds[*p];
        *at = p;
        if (kind == QUOTE) return 1;
        if (kind == BAD) return -1;
        size_t size = kind == PLAIN ? 1 : kind == ESCAPE || kind == TWO ? 2 : kind == THREE ? 3 : 4;
        if ((size_t)(end - p) < size) return 0;
        if (kind == ESCAPE) {
            if (!p[1] || !strchr("\"\\bfnrt", p[1])) return -1;
        } else if (kind != PLAIN) {
            byte low = *p == 0xE0 ? 0xA0 : *p == 0xF0 ? 0x90 : 0x80, high = *p == 0xED ? 0x9F : *p == 0xF4 ? 0x8F : 0xBF;
            if (p[1] < low || p[1] > high) return -1;
            for (size_t i = 2; i < size; i++)
                if ((p[i] & 0xC0) != 0x80) return -1;
        }
        p += size;
    }
    return 0;
}

/* Return whether in[0..size) begins with these bytes, or is a prefix of them. */
static int begins(const byte *in, size_t size, PyObject *with) {
    size_t wanted = (size_t)PyBytes_GET_SIZE(with);
    return !memcmp(in, PyBytes_AS_STRING(with), size < wanted ? size : wanted);
}

static byte *put(byte *out, PyObject *bytes) {
    memcpy(out, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    return out + PyBytes_GET_SIZE(bytes);
}

static int hex(byte c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

typedef struct {
    byte *end;            /* of the rebuilt events */
    size_t used, left;    /* input bytes consumed; bytes left of the current chunk */
    long long events, bytes_in;
} Rebuilt;

/* Rebuild the events of in[0..size) at done->end. 0: some bytes do not match the template. */
static int rebuild(const Leg *leg, const byte *in, size_t size, Rebuilt *done) {
    const byte *p = in, *end = in + size;
    size_t before = (size_t)PyBytes_GET_SIZE(leg->before), after = (size_t)PyBytes_GET_SIZE(leg->after);
    size_t *left = &done->left;
    *left = leg->left;
    while (p < end) {
        if (!*left) {  /* a size line (RFC 9112, 7.1); one with an extension and the last one are left to the parser */
            const byte *q = p;
            size_t chunk = 0;
            for (; q < end && q - p <= MAX_SIZE_DIGITS && hex(*q) >= 0; q++) chunk = chunk * 16 + (size_t)hex(*q);
            if (q - p > MAX_SIZE_DIGITS || (q < end && (q == p || !chunk || *q != '\r'))) return 0;
            if (end - q < 2) break;
            if (q[1] != '\n') return 0;
            *left = chunk;
            p = q + 2;
            continue;
        }
        size_t here = (size_t)(end - p) < *left ? (size_t)(end - p) : *left;
        if (!begins(p, here, leg->before)) return 0;
        const byte *text = p + before, *quote = text;
        int found = here < before ? 0 : find_quote(&quote, p + here);
        if (found < 0 || (found && (quote == text || !begins(quote, (size_t)(p + here - quote), leg->after)))) return 0;
        if (!found || (size_t)(p + here - quote) < after) {
            if (here == *left) return 0;  /* the event spans two chunks */
            break;
        }
        const byte *next = quote + after;
        *left -= (size_t)(next - p);
        done->bytes_in += next - p;
        if (!*left) {
            if (end - next < 2 || next[0] != '\r' || next[1] != '\n') return 0;
            next += 2;
        }
        byte *out = put(done->end, leg->new_before);
        memcpy(out, text, (size_t)(quote - text));
        done->end = put(out + (quote - text), leg->new_after);
        done->events++;
        p = next;
    }
    done->used = (size_t)(p - in);
    return 1;
}

/* Keep the bytes that were read and not passed on. Returns `answer`, or -1 with an exception set. */
static int keep(Leg *leg, const byte *data, size_t size, int answer) {
    byte *rest = size > leg->rest_size ? realloc(leg->rest, size) : leg->rest;
    if (size && !rest) return PyErr_NoMemory(), -1;
    leg->rest = rest;
    leg->rest_size = size;
    if (size) memcpy(rest, data, size);
    return answer;
}

/* Return an upper bound of the bytes that the events of a read become, including the framing. */
static size_t most(const Leg *leg, size_t size) {
    size_t event = (size_t)(PyBytes_GET_SIZE(leg->before) + PyBytes_GET_SIZE(leg->after)) + 1;
    size_t rebuilt = (size_t)(PyBytes_GET_SIZE(leg->new_before) + PyBytes_GET_SIZE(leg->new_after));
    return size + (size / event + 1) * rebuilt + FRAMING;
}

/* Send one chunk; bytes that the kernel does not accept go to the transport. -1: an exception is set. */
static int send_chunk(Leg *leg, byte *begin, byte *end) {
    size_t size = (size_t)(end - begin);
    for (*--begin = '\n', *--begin = '\r'; size; size >>= 4) *--begin = (byte)"0123456789abcdef"[size & 15];
    memcpy(end, "\r\n", 2);
    size_t all = (size_t)(end + 2 - begin);
    ssize_t sent = send(leg->caller, begin, all, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) sent = 0;  /* the loop finds out why, and reports it */
    if ((size_t)sent == all) return 0;
    PyObject *unsent = PyBytes_FromStringAndSize((char *)begin + sent, (Py_ssize_t)all - sent);
    PyObject *transport = Py_NewRef(leg->transport);  /* writing may pause the router, which frees the leg */
    PyObject *done = unsent ? PyObject_CallMethodOneArg(transport, s_write, unsent) : NULL;
    Py_XDECREF(unsent), Py_DECREF(transport), Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Serve an armed socket that is readable. 1: Python must read it; 0: done; -1: an exception is set. */
static int serve(Poller *self, int descriptor, double now) {
    Leg *leg = self->legs[descriptor];
    if (leg->handed) return 1;
    PyObject *buffered = PyObject_CallNoArgs(leg->get_unsent);
    if (!buffered) return -1;
    size_t unsent = PyLong_AsSize_t(buffered);
    Py_DECREF(buffered);
    if (unsent == (size_t)-1 && PyErr_Occurred()) return -1;
    leg->handed = 1;
    if (unsent) return 1;
    size_t size = leg->rest_size;
    if (size) memcpy(self->in, leg->rest, size);
    ssize_t got = read(descriptor, self->in + size, READ_BYTES);
    if (got <= 0) {
        leg->handed = !(got < 0 && (errno == EAGAIN || errno == EINTR));
        leg->error = got < 0 && leg->handed ? errno : 0;
        return leg->handed;
    }
    size += (size_t)got;
    size_t wanted = most(leg, size);
    if (wanted > self->out_size) {
        byte *grown = realloc(self->out, wanted);
        if (!grown) return keep(leg, self->in, size, 1);
        self->out = grown;
        self->out_size = wanted;
    }
    byte *begin = self->out + FRAMING / 2;
    Rebuilt done = {.end = begin};
    if (leg->budget < size || !rebuild(leg, self->in, size, &done) || size - done.used > MAX_REST)
        return keep(leg, self->in, size, 1);
    if (keep(leg, self->in + done.used, size - done.used, 0)) return -1;
    leg->handed = 0, leg->left = done.left;
    leg->budget -= (size_t)done.bytes_in, leg->bytes_in += done.bytes_in;
    if (!done.events) return 0;
    int i = 0;
    double gap = now - leg->passed_at;
    while (i < self->bounds_size && gap > self->bounds[i]) i++;
    leg->counts[i]++, leg->seconds += gap, leg->passed_at = now;
    leg->events += done.events, leg->bytes_out += done.end - begin;
    return send_chunk(leg, begin, done.end);
}

static Leg *leg_of(const Poller *self, long descriptor) {
    return descriptor >= 0 && descriptor < self->legs_size ? self->legs[descriptor] : NULL;
}

/* Remove a leg and close its descriptor, so that the caller's connection can end even if a later step fails. */
static Leg *take_out(Poller *self, long descriptor) {
    Leg *leg = leg_of(self, descriptor);
    if (!leg) return NULL;
    self->legs[descriptor] = NULL;
    self->armed--;
    close(leg->caller);
    return leg;
}

static void let_go(Leg *leg) {
    PyObject *held[] = {leg->transport, leg->before, leg->after, leg->new_before, leg->new_after, leg->get_unsent};
    free(leg->rest);
    free(leg);
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) Py_DECREF(held[i]);
}

/* Return the descriptors that Python must read, or None. */
static PyObject *ready_at(Poller *self, double now) {
    struct epoll_event events[MAX_READY];
    int n = epoll_wait(self->epoll, events, MAX_READY, 0);
    if (n < 0 && errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
    int mine[MAX_READY], count = 0;
    for (int i = 0; i < n; i++) {
        int descriptor = events[i].data.fd, is_mine = leg_of(self, descriptor) ? serve(self, descriptor, now) : 1;
        if (is_mine < 0) {  /* bytes may be lost, so the answer must not continue */
            Leg *leg = leg_of(self, descriptor);
            if (leg) leg->handed = 1, leg->error = EIO;
            PyErr_WriteUnraisable((PyObject *)self);
        }
        if (is_mine) mine[count++] = descriptor;
    }
    PyObject *ready = count ? PyList_New(count) : Py_NewRef(Py_None);
    for (int i = 0; ready && i < count; i++) {
        PyList_SET_ITEM(ready, i, PyLong_FromLong(mine[i]));
        if (!PyList_GET_ITEM(ready, i)) Py_CLEAR(ready);
    }
    return ready;
}

/* serve(clock, found, unserved): call found(descriptors that Python must read), if there are any and none is unserved. */
static PyObject *poller_serve(Poller *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) return PyErr_SetString(PyExc_TypeError, "serve(clock, found, unserved)"), NULL;
    if (PyObject_Size(args[2])) return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    PyObject *now = PyObject_CallNoArgs(args[0]);
    double at = now ? PyFloat_AsDouble(now) : 0;
    Py_XDECREF(now);
    PyObject *ready = PyErr_Occurred() ? NULL : ready_at(self, at);
    PyObject *served = ready && ready != Py_None ? PyObject_CallOneArg(args[1], ready) : Py_XNewRef(ready);
    Py_XDECREF(ready);
    return served;
}

static PyObject *poller_arm(Poller *self, PyObject *args) {
    int descriptor, caller;
    Leg given = {0};
    Py_ssize_t budget;
    if (!PyArg_ParseTuple(args, "iiO(SSSS)dn:arm", &descriptor, &caller, &given.transport, &given.before, &given.after,
                          &given.new_before, &given.new_after, &given.passed_at, &budget))
        return NULL;
    given.budget = budget < 0 ? 0 : (size_t)budget;
    if (descriptor < 0 || leg_of(self, descriptor)) {
        PyErr_SetString(PyExc_ValueError, "no such descriptor, or one that is armed");
        return NULL;
    }
    if (self->armed >= self->max_armed) Py_RETURN_FALSE;
    if (descriptor >= self->legs_size) {
        int size = descriptor + 64;
        Leg **grown = realloc(self->legs, (size_t)size * sizeof *grown);
        if (!grown) return PyErr_NoMemory();
        memset(grown + self->legs_size, 0, (size_t)(size - self->legs_size) * sizeof *grown);
        self->legs = grown;
        self->legs_size = size;
    }
    if ((given.caller = fcntl(caller, F_DUPFD_CLOEXEC, 0)) < 0) Py_RETURN_FALSE;
    Leg *leg = calloc(1, sizeof *leg + ((size_t)self->bounds_size + 1) * sizeof *leg->counts);
    given.get_unsent = leg ? PyObject_GetAttr(given.transport, s_get_write_buffer_size) : PyErr_NoMemory();
    if (!given.get_unsent) return close(given.caller), free(leg), NULL;
    *leg = given;
    PyObject *held[] = {leg->transport, leg->before, leg->after, leg->new_before, leg->new_after};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) Py_INCREF(held[i]);
    self->legs[descriptor] = leg;
    self->armed++;
    Py_RETURN_TRUE;
}

static PyObject *poller_take(Poller *self, PyObject *given) {
    Leg *leg = leg_of(self, PyLong_AsLong(given));
    if (!leg || !leg->events) return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    PyObject *counts = PyList_New(0), *taken = NULL;
    for (int i = 0; counts && i <= self->bounds_size; i++) {
        PyObject *count = PyLong_FromUnsignedLong(leg->counts[i]);
        if (!count || PyList_Append(counts, count)) Py_CLEAR(counts);
        Py_XDECREF(count);
    }
    if (!counts || !(taken = Py_BuildValue("LLLddN", leg->events, leg->bytes_in, leg->bytes_out, leg->passed_at,
                                           leg->seconds, counts)))
        return NULL;
    leg->events = leg->bytes_in = leg->bytes_out = 0;
    leg->seconds = 0;
    memset(leg->counts, 0, ((size_t)self->bounds_size + 1) * sizeof *leg->counts);
    return taken;
}

static PyObject *poller_disarm(Poller *self, PyObject *given) {
    Leg *leg = take_out(self, PyLong_AsLong(given));
    if (!leg) return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    char line[FRAMING];  /* the rest of a chunk gets a size line of its own */
    int size = leg->left ? snprintf(line, sizeof line, "%zx\r\n", leg->left) : 0;
    PyObject *rest = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((size_t)size + leg->rest_size));
    if (rest) memcpy(PyBytes_AS_STRING(rest), line, (size_t)size);
    if (rest && leg->rest_size) memcpy(PyBytes_AS_STRING(rest) + size, leg->rest, leg->rest_size);
    PyObject *answer = rest ? Py_BuildValue("Ni", rest, leg->error) : NULL;
    let_go(leg);
    return answer;
}

/* Every armed socket is disarmed later, so references are left only when the process ends. */
static void poller_dealloc(Poller *self) {
    for (int i = 0; i < self->legs_size; i++)
        if (self->legs[i]) let_go(take_out(self, i));
    free(self->legs);
    free(self->out);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Poller(epoll, bounds, max_armed): descriptor of an epoll that outlives the Poller; seconds; maximum of armed sockets. */
static PyObject *poller_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(words)) {
    PyObject *bounds;
    int epoll, max_armed;
    if (!PyArg_ParseTuple(args, "iO!i:Poller", &epoll, &PyTuple_Type, &bounds, &max_armed)) return NULL;
    Poller *self = (Poller *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->epoll = epoll, self->max_armed = max_armed;
    self->bounds_size = (int)PyTuple_GET_SIZE(bounds);
    if (self->bounds_size > MAX_BOUNDS) PyErr_SetString(PyExc_ValueError, "too many bounds");
    for (int i = 0; i < self->bounds_size && !PyErr_Occurred(); i++)
        self->bounds[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, i));
    if (PyErr_Occurred()) Py_CLEAR(self);
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"serve", (PyCFunction)(void (*)(void))poller_serve, METH_FASTCALL, NULL},
    {"arm", (PyCFunction)poller_arm, METH_VARARGS, NULL},
    {"take", (PyCFunction)poller_take, METH_O, NULL},
    {"disarm", (PyCFunction)poller_disarm, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject poller_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "eidproxy._splice.Poller", .tp_basicsize = sizeof(Poller),
    .tp_flags = Py_TPFLAGS_DEFAULT, .tp_new = poller_new, .tp_dealloc = (destructor)poller_dealloc, .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_splice", .m_size = -1};

PyMODINIT_FUNC PyInit__splice(void) {
    fill_kinds();
    s_get_write_buffer_size = PyUnicode_InternFromString("get_write_buffer_size");
    s_write = PyUnicode_InternFromString("write");
    if (!s_get_write_buffer_size || !s_write || PyType_Ready(&poller_type)) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddObjectRef(made, "Poller", (PyObject *)&poller_type)) Py_CLEAR(made);
    return made;
}
