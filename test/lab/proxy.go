// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Proxy is an HTTP proxy as companies have them: it opens connections (CONNECT) to port 443 of
// the hosts that it knows, for those who have the password.
type Proxy struct {
	at       Place
	hosts    map[string]netip.Addr
	password string
	listener net.Listener
	work     sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool
	opened map[string]int
	closed bool
}

// proxyUser is who has the password.
const proxyUser = "user"

// StartProxy starts a proxy at an address of a place, until Close. Hosts are the names that it
// looks up.
func StartProxy(at Place, addr netip.AddrPort, hosts map[string]netip.Addr, password string) (*Proxy, error) {
	p := &Proxy{at: at, hosts: hosts, password: password, open: map[net.Conn]bool{}, opened: map[string]int{}}
	err := at(func() (err error) {
		p.listener, err = net.Listen("tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p.work.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.serve(conn) })
		}
	})
	return p, nil
}

// URL is the proxy's address for HTTPS_PROXY, with user and password.
func (p *Proxy) URL() string {
	return fmt.Sprintf("http://%s:%s@%s", proxyUser, p.password, p.listener.Addr())
}

// Opened returns how many connections to a host, as it was named, were opened.
func (p *Proxy) Opened(host string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened[host]
}

// Close ends the proxy and all connections.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for conn := range p.open {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
	return err
}

// keep has Close close a connection, and returns what to do when it is no longer used.
func (p *Proxy) keep(conn net.Conn) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[conn] = true
	if p.closed {
		_ = conn.Close()
	}
	return func() {
		_ = conn.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, conn)
	}
}

func (p *Proxy) serve(conn net.Conn) {
	defer p.keep(conn)()
	from := bufio.NewReader(conn)
	request, err := http.ReadRequest(from)
	if err != nil {
		return
	}
	to, status := p.connect(request)
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n\r\n", status, http.StatusText(status)); err != nil || to == nil {
		return
	}
	defer p.keep(to)()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, to)
		_ = conn.Close()
	})
	_, _ = io.Copy(to, from)
	_ = to.Close()
	back.Wait()
}

// proxyDialTimeout is shorter than what clients wait for.
const proxyDialTimeout = 3 * time.Second

// connect opens the connection that was asked for, or returns why not.
func (p *Proxy) connect(r *http.Request) (net.Conn, int) {
	said := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	if user, password, ok := said.BasicAuth(); !ok || user != proxyUser || password != p.password {
		return nil, http.StatusProxyAuthRequired
	}
	host, port, err := net.SplitHostPort(r.Host)
	addr := p.hosts[host]
	if r.Method != http.MethodConnect || err != nil || port != "443" || !addr.IsValid() {
		return nil, http.StatusForbidden
	}
	var conn net.Conn
	err = p.at(func() (err error) {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(addr.String(), port), proxyDialTimeout)
		return err
	})
	if err != nil {
		return nil, http.StatusBadGateway
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened[host]++
	return conn, http.StatusOK
}
