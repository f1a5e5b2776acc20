// SPDX-License-Identifier: Apache-2.0

package https

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// startProxy answers the first request at an address of the loopback, which it returns, with
// what answer returns for it, and sends back what it gets then.
func startProxy(t *testing.T, answer func(*http.Request) string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		from := bufio.NewReader(conn)
		r, err := http.ReadRequest(from)
		if err != nil {
			t.Errorf("read request: %v", err)
			return
		}
		if _, err := io.WriteString(conn, answer(r)); err == nil {
			_, _ = io.Copy(conn, from)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	var got *http.Request
	at := startProxy(t, func(r *http.Request) string {
		got = r
		return "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
	})
	p := NewProxy("http://us%40er:pass%20word@"+at, "")
	if p.String() != at {
		t.Errorf("name: got %q, want %q", p, at)
	}
	conn, err := p.Dial(t.Context(), "aws.example.com:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if user, password, ok := (&http.Request{Header: http.Header{"Authorization": got.Header["Proxy-Authorization"]}}).BasicAuth(); !ok || user != "us@er" || password != "pass word" {
		t.Errorf("authorization: got %q, %q, %v", user, password, ok)
	}
	if got.Method != http.MethodConnect || got.RequestURI != "aws.example.com:443" || got.Host != "aws.example.com:443" {
		t.Errorf("request: got %s %s of host %s", got.Method, got.RequestURI, got.Host)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 5)
	if _, err := io.ReadFull(conn, back); err != nil || string(back) != "hello" {
		t.Errorf("the connection: got %q, %v", back, err)
	}
}

// What a proxy answers is bounded, and neither it nor the password gets into errors.
func TestHostileProxy(t *testing.T) {
	tests := []struct{ name, answer, want string }{
		{"refuses", "HTTP/1.1 403 \x1b[31mNo\r\n\r\n", "it answered 403 Forbidden: it does not allow connections to this host and port"},
		{"wants a password", "HTTP/1.1 407 Secret\r\n\r\n", "it answered 407 Proxy Authentication Required: write user and password into HTTPS_PROXY, as http://user:password@proxy.example.com:3128"},
		{"an unknown status", "HTTP/1.1 599 \r\n\r\n", "it answered 599 "},
		{"not HTTP", "SSH-2.0-\x1b[31m\r\n", "its answer is not HTTP"},
		{"nothing", "", "it closed the connection, or its answer is too long"},
		{"a line without end", "HTTP/1.1 200 " + strings.Repeat("x", 2*maxAnswer), "it closed the connection, or its answer is too long"},
		{"headers without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxAnswer), "its answer is not HTTP"},
		{"more than an answer", "HTTP/1.1 200 OK\r\n\r\nmore", "it sent more than an answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(conn, tt.answer)
				conn.Close()
			}()
			at := l.Addr().String()
			_, err = NewProxy("http://user:password@"+at, "").Dial(t.Context(), "aws.example.com:443")
			if want := "connect to aws.example.com:443 through the proxy " + at + ": " + tt.want; err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
			<-done
		})
	}
}

// A proxy that says nothing holds up no one for longer than he waits.
func TestHostileSilentProxy(t *testing.T) {
	at := startProxy(t, func(*http.Request) string { return "HTTP/1.1 200 OK\r\nA: " })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewProxy(at, "").Dial(ctx, "aws.example.com:443"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), at) {
		t.Errorf("got %v, want that the time is over, and the proxy's name", err)
	}
}

func TestProxyAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"http://proxy.example.com:3128":               "proxy.example.com:3128",
		"http://user:password@proxy.example.com:3128": "proxy.example.com:3128",
		"proxy.example.com:3128":                      "proxy.example.com:3128",
		"proxy.example.com":                           "proxy.example.com:80",
		"http://[2001:db8::1]:3128/":                  "[2001:db8::1]:3128",
	} {
		if p := NewProxy(address, ""); p.err != nil || p.String() != want {
			t.Errorf("%s: got %v, %v, want %s", address, p, p.err, want)
		}
	}
	for _, address := range []string{
		"https://user:password@proxy.example.com", "socks5://user:password@proxy.example.com",
		"http://user:password@", "http://user:pass\nword@proxy", "http://user:password@proxy:port",
	} {
		p := NewProxy(address, "")
		if !p.Covers("aws.example.com:443") {
			t.Errorf("%q: connections pass it by", address)
		}
		if _, err := p.Dial(t.Context(), "aws.example.com:443"); !errors.Is(err, ErrProxy) || strings.Contains(err.Error()+p.String(), "pass") {
			t.Errorf("%q: got %v", address, err)
		}
	}
}

func TestProxyCovers(t *testing.T) {
	if p := NewProxy("", "*"); p != nil || p.Covers("aws.example.com:443") {
		t.Errorf("no proxy: got %v", p)
	}
	p := NewProxy("http://proxy.example.com:3128", "example.net, 203.0.113.0/24,10.0.0.1")
	for hostport, want := range map[string]bool{
		"aws.example.com:443": true, "198.51.100.1:443": true, "[2001:db8::1]:8443": true,
		"aws.example.net:443": false, "203.0.113.7:443": false, "10.0.0.1:443": false, "127.0.0.1:443": false, "localhost:443": false,
	} {
		if got := p.Covers(hostport); got != want {
			t.Errorf("%s: got %v, want %v", hostport, got, want)
		}
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "NO_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("https_proxy", "http://proxy.example.com:3128")
	if p := ProxyFromEnvironment(); p.String() != "proxy.example.com:3128" || !p.Covers("aws.example.com:443") {
		t.Errorf("got %v", p)
	}
	t.Setenv("no_proxy", "example.com")
	if p := ProxyFromEnvironment(); p.Covers("aws.example.com:443") {
		t.Error("NO_PROXY does not count")
	}
}
