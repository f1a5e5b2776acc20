// SPDX-License-Identifier: Apache-2.0

package httplimit

import (
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// lateListener is a listener that was closed, which the server has not noticed yet.
type lateListener struct {
	net.Listener
	accepting, closed chan struct{}
}

func (l lateListener) Accept() (net.Conn, error) {
	close(l.accepting)
	<-l.closed
	return nil, net.ErrClosed
}

func (l lateListener) Close() error {
	close(l.closed)
	return l.Listener.Close()
}

func TestCloseAfterListenerClosed(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := lateListener{inner, make(chan struct{}), make(chan struct{})}
	s := NewHTTP("test", http.NotFoundHandler(), time.Second, slog.New(slog.DiscardHandler))
	s.Serve(l)
	<-l.accepting
	inner.Close()
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestTimeouts(t *testing.T) {
	s := NewHTTP("test", http.NotFoundHandler(), time.Second, slog.New(slog.DiscardHandler)).server
	if s.ReadHeaderTimeout == 0 || s.ReadTimeout == 0 || s.WriteTimeout == 0 || s.IdleTimeout == 0 {
		t.Errorf("a timeout is missing: %+v", s)
	}
}
