// SPDX-License-Identifier: Apache-2.0

package control

import (
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

// Server answers requests at the control socket, which Close removes.
type Server struct {
	*httplimit.HTTP
	runDir string
	socket net.Listener // replaced by EnsureListening
}

// Listen opens the control socket in runDir, mode 0600, and answers there until Close. It
// replaces a socket that a killed daemon has left, so the caller must make sure that no
// other daemon runs (package state holds a lock).
func Listen(runDir string, d Daemon, log *slog.Logger) (*Server, error) {
	s := &Server{HTTP: httplimit.NewHTTP("answer commands", handler(d), requestTimeout, log), runDir: runDir}
	return s, s.open()
}

// open opens the socket and starts to answer there.
func (s *Server) open() error {
	if err := os.MkdirAll(s.runDir, 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	l, err := listen(SocketPath(s.runDir))
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	s.socket = l
	s.Serve(l)
	return nil
}

// EnsureListening opens the socket again if its file was deleted: without it the commands
// would report that meshd is not running. It must not be called by several goroutines, nor
// after Close.
func (s *Server) EnsureListening() error {
	if _, err := os.Lstat(SocketPath(s.runDir)); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_ = s.socket.Close() // no process can connect to it without its file
	return s.open()
}

// listen binds a temporary name and renames it after chmod, so that the socket is never
// at its path with a mode wider than 0600.
func listen(path string) (net.Listener, error) {
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
	err = errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path))
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
// that EnsureListening has closed and replaced.
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
