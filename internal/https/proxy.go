// SPDX-License-Identifier: Apache-2.0

package https

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	// maxAnswer bounds what a proxy may answer, in bytes, before the connection is open.
	maxAnswer = 16 << 10
	// proxyTimeout bounds the time until then.
	proxyTimeout = 10 * time.Second
)

// ErrProxy is returned for a proxy whose address can't be used.
var ErrProxy = errors.New("HTTPS_PROXY is not the address of an HTTP proxy: write one such as http://proxy.example.com:3128")

// Proxy is an HTTP proxy that opens connections to others (CONNECT: RFC 9110, section 9.3.6).
type Proxy struct {
	address string      // host:port
	header  http.Header // of each request
	covers  func(*url.URL) (*url.URL, error)
	err     error // why it can't be used
}

// ProxyFromEnvironment returns the proxy that HTTPS_PROXY or https_proxy names, except for
// the hosts of NO_PROXY or no_proxy. It is nil if none is named.
func ProxyFromEnvironment() *Proxy {
	e := httpproxy.FromEnvironment()
	return NewProxy(e.HTTPSProxy, e.NoProxy)
}

// NewProxy returns the proxy at an address, with except in the form of NO_PROXY. It is nil
// without an address. A proxy whose address is wrong refuses all connections.
func NewProxy(address, except string) *Proxy {
	if address == "" {
		return nil
	}
	p := &Proxy{covers: (&httpproxy.Config{HTTPSProxy: "http://proxy", NoProxy: except}).ProxyFunc()}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		p.err = ErrProxy // the error of Parse would quote the password
		return p
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	p.address = net.JoinHostPort(u.Hostname(), port)
	p.header = make(http.Header)
	if u.User != nil {
		request := http.Request{Header: make(http.Header)}
		password, _ := u.User.Password()
		request.SetBasicAuth(u.User.Username(), password)
		p.header.Set("Proxy-Authorization", request.Header.Get("Authorization"))
	}
	return p
}

// String names the proxy, without its user and password.
func (p *Proxy) String() string {
	if p.err != nil {
		return "HTTPS_PROXY"
	}
	return p.address
}

// Covers reports whether connections to host:port go through the proxy.
func (p *Proxy) Covers(hostport string) bool {
	if p == nil {
		return false
	}
	through, err := p.covers(&url.URL{Scheme: "https", Host: hostport})
	return err == nil && through != nil
}

// Dial opens a connection to host:port through the proxy, which also looks up the name.
func (p *Proxy) Dial(ctx context.Context, hostport string) (net.Conn, error) {
	if p.err != nil {
		return nil, p.err
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy %s: %w", p, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = p.connect(conn, hostport)
	if !stop() { // the connection is closed, or about to be
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s through the proxy %s: %w", hostport, p, err)
	}
	return conn, nil
}

// connect asks the proxy for a connection.
func (p *Proxy) connect(conn net.Conn, hostport string) error {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: hostport}, Host: hostport, Header: p.header}
	if err := request.Write(conn); err != nil {
		return err
	}
	from := bufio.NewReader(io.LimitReader(conn, maxAnswer))
	answer, err := http.ReadResponse(from, request)
	network := (*net.OpError)(nil)
	switch {
	case errors.As(err, &network):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection, or its answer is too long")
	case err != nil:
		return errors.New("its answer is not HTTP") // the error quotes what it has sent, which may be anything
	case answer.StatusCode/100 != 2:
		return refused(answer.StatusCode)
	case from.Buffered() > 0:
		return errors.New("it sent more than an answer")
	}
	return nil
}

// refused returns what it means that a proxy answers with a status.
func refused(status int) error {
	advice := ""
	switch status {
	case http.StatusProxyAuthRequired:
		advice = ": write user and password into HTTPS_PROXY, as http://user:password@proxy.example.com:3128"
	case http.StatusForbidden, http.StatusMethodNotAllowed:
		advice = ": it does not allow connections to this host and port"
	}
	return fmt.Errorf("it answered %d %s%s", status, http.StatusText(status), advice)
}
