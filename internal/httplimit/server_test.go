// SPDX-License-Identifier: Apache-2.0

package httplimit

import (
	"net"
	"net/http"
	"testing"
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

func TestShutdownAfterListenerClosed(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := lateListener{inner, make(chan struct{}), make(chan struct{})}
	s := &http.Server{}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	<-l.accepting
	inner.Close()
	if err := Shutdown(t.Context(), s); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if err := <-served; err != http.ErrServerClosed {
		t.Errorf("serve: got %v, want %v", err, http.ErrServerClosed)
	}
}
