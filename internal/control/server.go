// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/meshd/meshd/internal/httplimit"
)

// requestTimeout bounds a request. It is longer than the client waits.
const requestTimeout = 2 * answerTimeout

// Server answers requests at the control socket and at the read socket, which Close removes.
type Server struct{ control, read *socket }

// Listen opens the control socket in runDir, mode 0600, and answers there until Close. It
// replaces a socket that a killed daemon has left, so the caller must make sure that no
// other daemon runs (package state holds a lock).
//
// If there is the directory of the read socket, see [ReadSocketPath], it opens that, too: for the directory's
// group, and for requests that change nothing.
func Listen(runDir string, d Daemon, log *slog.Logger) (*Server, error) {
	s := &Server{
		control: newSocket(SocketPath(runDir), 0o600, handler(d), log),
		read:    newSocket(ReadSocketPath(runDir), 0o660, readHandler(d), log),
	}
	return s, s.EnsureListening()
}

// EnsureListening opens a socket again if its file was deleted: without it the commands
// would report that meshd is not running. It must not be called by several goroutines, nor
// after Close.
func (s *Server) EnsureListening() error {
	err := s.control.ensureListening()
	if _, missing := os.Stat(filepath.Dir(s.read.path)); missing == nil {
		err = errors.Join(err, s.read.ensureListening())
	}
	return err
}

// Close ends both servers, and waits for requests until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	return errors.Join(s.control.Close(ctx), s.read.Close(ctx))
}

// socket is an HTTP server at a unix socket.
type socket struct {
	*httplimit.HTTP
	path     string
	mode     os.FileMode
	listener net.Listener // nil if none was opened; replaced by ensureListening
}

func newSocket(path string, mode os.FileMode, h http.Handler, log *slog.Logger) *socket {
	return &socket{HTTP: httplimit.NewHTTP("answer commands", h, requestTimeout, log), path: path, mode: mode}
}

// ensureListening opens the socket unless it is there.
func (s *socket) ensureListening() error {
	if s.listener != nil {
		if _, err := os.Lstat(s.path); !errors.Is(err, os.ErrNotExist) {
			return nil
		}
		_ = s.listener.Close() // no process can connect to it without its file
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return fmt.Errorf("make directory for commands: %w", err)
	}
	l, err := listen(s.path, s.mode)
	if err != nil {
		return fmt.Errorf("open socket for commands: %w", err)
	}
	s.listener = l
	s.Serve(l)
	return nil
}

// listen binds a temporary name and renames it after chmod, so that the socket is never
// at its path with a wider mode.
func listen(path string, mode os.FileMode) (net.Listener, error) {
	temp := filepath.Join(filepath.Dir(path), ".meshd.sock.new")
	for _, p := range []string{temp, path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(temp, mode), os.Rename(temp, path))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unlinking{Listener: l, path: path}, nil
}

// unlinking is a listener that removes its socket when it is closed.
type unlinking struct {
	net.Listener
	path string
	once sync.Once
}

// Close implements net.Listener. It acts only once: the server may close a listener again
// that ensureListening has closed and replaced.
func (u *unlinking) Close() error {
	var err error
	u.once.Do(func() {
		err = u.Listener.Close()
		if removeErr := os.Remove(u.path); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	})
	return err
}

// reading are the requests that anybody may make who may read. What answers them changes nothing, and tells
// no secret.
var reading = map[string]bool{"/v1/status": true, "/v1/plan": true, "/v1/ping": true, "/v1/network": true, "/v1/graph": true}

// readHandler returns the handler of what only reads.
func readHandler(d Daemon) http.Handler {
	all := handler(d)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !reading[r.URL.Path] {
			reply(w, struct{}{}, errForbidden)
			return
		}
		all.ServeHTTP(w, r)
	})
}

// handler returns the handler of the whole API.
func handler(d Daemon) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("probe") == "true" {
			status, err := d.Probe(r.Context())
			reply(w, status, err)
			return
		}
		reply(w, d.Status(), nil)
	})
	mux.HandleFunc("GET /v1/plan", func(w http.ResponseWriter, r *http.Request) {
		if name := r.URL.Query().Get("without"); name != "" {
			plan, err := d.PlanWithout(r.Context(), name)
			reply(w, plan, err)
			return
		}
		plan, err := d.Plan(r.Context())
		reply(w, plan, err)
	})
	mux.HandleFunc("POST /v1/forget", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, d.Forget(r.Context(), r.URL.Query().Get("node")))
	})
	mux.HandleFunc("POST /v1/revoke", func(w http.ResponseWriter, r *http.Request) {
		revoked, err := d.Revoke(r.Context(), r.URL.Query().Get("node"))
		reply(w, revoked, err)
	})
	mux.HandleFunc("POST /v1/secret/rotate", func(w http.ResponseWriter, r *http.Request) {
		rotated, err := d.RotateSecret(r.Context())
		reply(w, rotated, err)
	})
	mux.HandleFunc("POST /v1/renumber", func(w http.ResponseWriter, r *http.Request) {
		renumbered, err := d.Renumber(r.Context(), r.URL.Query().Get("force") == "true")
		reply(w, renumbered, err)
	})
	handleNetwork(mux, d)
	handlePing(mux, d)
	handleGateways(mux, d)
	handleClients(mux, d)
	return mux
}

// failure is the body of an answer that is not 200.
type failure struct {
	Error string `json:"error"`
}

// reply writes an answer.
func reply[T any](w http.ResponseWriter, body T, err error) {
	FillLists(&body)
	code, answer := http.StatusOK, any(body)
	switch {
	case errors.Is(err, errForbidden):
		code, answer = http.StatusForbidden, failure{err.Error()}
	case errors.Is(err, ErrRefused):
		code, answer = http.StatusConflict, failure{err.Error()}
	case err != nil:
		code, answer = http.StatusInternalServerError, failure{err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// This fails only if the client has closed the connection.
	_ = json.NewEncoder(w).Encode(answer)
}
