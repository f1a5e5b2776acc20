// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// hostPort parses a host with an optional port, which is 0 if there is none. An IPv6
// address needs brackets only before a port.
func hostPort(s string) (HostPort, *Error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return literal(a, 0)
	}
	host, port, hasPort := s, "", false
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if host, port, ok = strings.Cut(rest, "]"); !ok {
			return HostPort{}, wrong(quote(s)+" has no closing bracket", "write ["+printable(rest)+"]")
		}
		if port, hasPort = strings.CutPrefix(port, ":"); !hasPort && port != "" {
			return HostPort{}, wrong(quote(s)+" has text behind the bracket", "write [address]:port")
		}
	} else {
		host, port, hasPort = cutLast(s, ":")
	}

	var n int
	if hasPort {
		var err *Error
		if n, err = number(1, 65535)(port); err != nil {
			return HostPort{}, wrong("the port of "+quote(s)+": "+err.Problem, err.Advice)
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return literal(a, uint16(n))
	}
	if host == "" {
		return HostPort{}, wrong(quote(s)+" has no host", "write an IP address or a name before the port")
	}
	if strings.HasPrefix(s, "[") || !isHostName(host) {
		return HostPort{}, wrong(quote(host)+" is neither an IP address nor a host name", "write one such as 203.0.113.7, 2001:db8::7 or aws.example.com")
	}
	return HostPort{Host: host, Port: uint16(n)}, nil
}

// literal returns the HostPort of an IP address, in its canonical form.
func literal(a netip.Addr, port uint16) (HostPort, *Error) {
	a = a.Unmap()
	if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return HostPort{}, wrong(printable(a.String())+" is not an address that other hosts can reach", "write another one, or a name")
	}
	return HostPort{Host: a.String(), Port: port}, nil
}

// cutLast cuts s around the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// isHostName reports whether s can be resolved as a name. It allows underscores, which are
// not valid in host names but in use. A name whose last label has only digits is refused:
// it is a misspelled IPv4 address.
func isHostName(s string) bool {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if !isDomain(strings.ReplaceAll(s, "_", "x")) {
		return false
	}
	_, last, ok := cutLast(s, ".")
	if !ok {
		last = s
	}
	_, err := strconv.Atoi(last)
	return err != nil
}

// joinAddress parses the gossip address of a node.
func joinAddress(s string) (HostPort, *Error) {
	h, err := hostPort(s)
	if err == nil && h.Port == 0 {
		h.Port = DefaultGossipPort
	}
	return h, err
}

// endpoint parses the address at which other hosts reach this node's WireGuard socket.
func endpoint(s string) (HostPort, *Error) {
	h, err := hostPort(s)
	if err != nil {
		return h, err
	}
	if !mesh.ValidHost(h.Host) || h.Host == "localhost" {
		return HostPort{}, wrong(h.Host+" is not an address that other hosts can reach", "write the node's public address or name")
	}
	return h, nil
}

// advertise parses the address at which other hosts reach this node's gossip, "" for
// unknown.
func advertise(s string) (HostPort, *Error) {
	if s == "" {
		return HostPort{}, nil
	}
	return endpoint(s)
}

// bind returns a function that parses an address to listen on, with a port for examples. Without
// a host it means all addresses.
func bind(example string) func(string) (netip.AddrPort, *Error) {
	advice := fmt.Sprintf("write one such as :%[1]s, 192.0.2.1:%[1]s or [2001:db8::1]:%[1]s", example)
	return func(s string) (netip.AddrPort, *Error) { return parseBind(s, advice) }
}

// optional returns a function that also parses "" for none.
func optional(parse func(string) (netip.AddrPort, *Error)) func(string) (netip.AddrPort, *Error) {
	return func(s string) (netip.AddrPort, *Error) {
		if s == "" {
			return netip.AddrPort{}, nil
		}
		return parse(s)
	}
}

func parseBind(s, advice string) (netip.AddrPort, *Error) {
	if port, ok := strings.CutPrefix(s, ":"); ok && !strings.Contains(port, ":") {
		n, err := number(1, 65535)(port)
		if err != nil {
			return netip.AddrPort{}, wrong("the port of "+quote(s)+": "+err.Problem, err.Advice)
		}
		return netip.AddrPortFrom(netip.Addr{}, uint16(n)), nil
	}
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return netip.AddrPort{}, wrong(quote(s)+" is not an IP address and a port", advice)
	case a.Port() == 0 || a.Addr().IsMulticast() || a.Addr().Zone() != "":
		return netip.AddrPort{}, wrong(printable(s)+" is nothing to listen on", advice)
	case a.Addr().IsUnspecified():
		return netip.AddrPortFrom(netip.Addr{}, a.Port()), nil
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// listen parses the address of a server, "" for none.
func listen(s string) (netip.AddrPort, *Error) {
	const advice = "write one such as 127.0.0.1:9586 or [::1]:9586, or \"\" for none"
	if s == "" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return netip.AddrPort{}, wrong(quote(s)+" is not an IP address and a port", advice)
	case a.Port() == 0 || a.Addr().IsMulticast() || a.Addr().Zone() != "":
		return netip.AddrPort{}, wrong(printable(s)+" is nothing to listen on", advice)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}
