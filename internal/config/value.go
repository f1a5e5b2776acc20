// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/meshd/meshd/internal/mesh"
)

// labelRule describes what label accepts.
const labelRule = "lower-case letters, digits, dots and dashes, at most 63 characters"

// label parses a name of a node, location or cluster: a DNS subdomain (RFC 1123) of at most
// mesh.MaxName characters. Kubernetes requires the former of a node's name, and the latter
// of a label's value.
func label(s string) (string, *Error) {
	if lower := strings.ToLower(s); lower != s && isDomain(lower) && len(s) <= mesh.MaxName {
		return "", wrong(s+" has upper-case letters", "write "+lower)
	}
	if !isDomain(s) || len(s) > mesh.MaxName {
		return "", wrong(quote(s)+" is not a name", "use "+labelRule)
	}
	return s, nil
}

// nodeName parses a node's name: a label that mesh.CheckName accepts.
func nodeName(s string) (string, *Error) {
	name, err := label(s)
	if err != nil {
		return "", err
	}
	if err := mesh.CheckName(name); err != nil {
		return "", wrong(err.Error(), "write a name of the host's own, which k3s has for it too")
	}
	return name, nil
}

// domain parses a DNS domain.
func domain(s string) (string, *Error) {
	if s = strings.TrimSuffix(s, "."); !isDomain(s) {
		return "", wrong(quote(s)+" is not a domain", "write one such as cluster.local")
	}
	return s, nil
}

// isDomain reports whether s is a DNS subdomain in lower case.
func isDomain(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		bad := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
		if part == "" || len(part) > 63 || part[0] == '-' || part[len(part)-1] == '-' || strings.ContainsFunc(part, bad) {
			return false
		}
	}
	return len(s) <= 253
}

// choice returns a function that parses one of several values.
func choice[T ~string](values ...T) func(string) (T, *Error) {
	return func(s string) (T, *Error) {
		if slices.Contains(values, T(s)) {
			return T(s), nil
		}
		names := make([]string, len(values))
		for i, v := range values {
			names[i] = string(v)
		}
		return "", wrong(quote(s)+" is unknown", "write "+strings.Join(names, ", or "))
	}
}

// fingerprint parses a node's fingerprint.
func fingerprint(s string) (mesh.ID, *Error) {
	id, err := mesh.ParseID(s)
	if err != nil {
		return id, wrong(quote(s)+" is not a fingerprint", "write its 32 hexadecimal digits; meshd status shows them")
	}
	return id, nil
}

func boolean(s string) (bool, *Error) {
	if s != "true" && s != "false" {
		return false, wrong(quote(s)+" is neither true nor false", "write true or false")
	}
	return s == "true", nil
}

// number returns a function that parses a decimal number within bounds.
func number(least, most int) func(string) (int, *Error) {
	advice := fmt.Sprintf("write one from %d to %d", least, most)
	return func(s string) (int, *Error) {
		n, err := strconv.Atoi(s)
		switch {
		case err != nil || strconv.Itoa(n) != s: // some YAML parsers read 010 as eight, others as ten
			return 0, wrong(quote(s)+" is not a whole number", advice)
		case n < least || n > most:
			return 0, wrong(s+" is out of range", advice)
		}
		return n, nil
	}
}

// rate parses bytes a second, 0 for no limit. With less than 10 kB/s no handshake gets through
// while a TCP connection sends; 1.25 GB/s is more than a relay forwards.
func rate(s string) (int, *Error) {
	const least, most = 10_000, 1_250_000_000
	n, err := number(0, most)(s)
	if err != nil || n > 0 && n < least {
		return 0, wrong(quote(s)+" is not a number of bytes a second", fmt.Sprintf("write one from %d to %d without a unit, or 0 for no limit", least, most))
	}
	return n, nil
}

// mtu parses a device's MTU, 0 for auto.
func mtu(s string) (int, *Error) {
	if s == "auto" {
		return 0, nil
	}
	// Every IPv4 host must accept 576 bytes (RFC 791); 9000 is the usual jumbo frame.
	n, err := number(576, 9000)(s)
	if err != nil {
		err.Advice += ", or auto"
	}
	return n, err
}

// generation parses cluster.generation.
func generation(s string) (uint64, *Error) {
	n, err := number(1, mesh.MaxGeneration)(s)
	return uint64(n), err
}

// duration returns a function that parses a duration within bounds.
func duration(least, most time.Duration, example string) func(string) (time.Duration, *Error) {
	advice := fmt.Sprintf("write one from %s to %s, such as %s", formatDuration(least), formatDuration(most), example)
	return func(s string) (time.Duration, *Error) {
		v, err := time.ParseDuration(s)
		switch {
		case err != nil:
			return 0, wrong(quote(s)+" is not a duration", advice)
		case v < least || v > most:
			return 0, wrong(s+" is out of range", advice)
		}
		return v, nil
	}
}

// formatDuration returns a duration as text without zero parts.
func formatDuration(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// keepalive parses a duration that WireGuard can represent: whole seconds in 16 bits.
func keepalive(s string) (*time.Duration, *Error) {
	const advice = "write seconds such as 25s, or 0 for never"
	if _, err := strconv.Atoi(s); err == nil && s != "0" {
		return nil, wrong(s+" has no unit", "write "+s+"s")
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return nil, wrong(quote(s)+" is not a duration", advice)
	case v < 0 || v > 65535*time.Second || v%time.Second != 0:
		return nil, wrong(s+" is not a number of whole seconds from 0 to 65535", advice)
	}
	return &v, nil
}

// link parses the name of a network device by the kernel's rules (dev_valid_name in
// net/core/dev.c). It refuses %, too, which the kernel replaces by a number.
func link(s string) (string, *Error) {
	const most = 15 // IFNAMSIZ without the terminating zero
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) }
	switch {
	case s == "" || s == "." || s == ".." || strings.ContainsFunc(s, bad):
		return "", wrong(quote(s)+" is not the name of a network device", "use letters, digits and dashes")
	case len(s) > most:
		return "", wrong(fmt.Sprintf("%s has %d characters", quote(s), len(s)), fmt.Sprintf("a network device's name has at most %d", most))
	}
	return s, nil
}

// linkFile parses the path of a link's file.
func linkFile(s string) (string, *Error) {
	const advice = "write a path such as /etc/meshd/west.conf, in which west is what the other cluster is called here"
	if _, err := directory(s); err != nil || filepath.Ext(s) != ".conf" {
		return "", wrong(quote(s)+" is not an absolute path that ends in .conf", advice)
	}
	name := LinkName(s)
	if _, err := link(name); err != nil || mesh.CheckName(name) != nil {
		return "", wrong(quote(name)+" can't be the name of a cluster and of a network device, as its file's name has to be", advice+", with at most 15 letters, digits and dashes")
	}
	return filepath.Clean(s), nil
}

// LinkName returns the name of the cluster to which a link leads, which is also that of its device.
func LinkName(file string) string { return strings.TrimSuffix(filepath.Base(file), ".conf") }

// linkAccess parses what other clusters may reach.
func linkAccess(s string) (mesh.Access, *Error) {
	a, err := mesh.ParseAccess(s)
	if err == nil {
		err = mesh.CheckAccess([]mesh.Access{a})
	}
	if err != nil {
		return a, wrong(err.Error(), "write pods, services, nodes, an address or a network, each with tcp/PORT@ or udp/PORT@ before it to allow that port only")
	}
	if a.Target == mesh.AccessInternet {
		return a, wrong("internet is not for other clusters", "name what they may reach in this cluster, such as services")
	}
	return a, nil
}

// directory parses an absolute path.
func directory(s string) (string, *Error) {
	if !filepath.IsAbs(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return "", wrong(quote(s)+" is not an absolute path", "write one that begins with /")
	}
	return filepath.Clean(s), nil
}

// secretPath parses the path of the secret file. Its errors don't show the text, because
// it may be the secret itself.
func secretPath(s string) (string, *Error) {
	if b, err := base64.StdEncoding.DecodeString(s); err == nil && len(b) == secretSize {
		return "", wrong("is a secret, and not the path of a file with one", "write it to "+secretExample+" with mode 0600, and that path here")
	}
	if _, err := directory(s); err != nil {
		return "", wrong("is not an absolute path", "write one such as "+secretExample)
	}
	return filepath.Clean(s), nil
}

// address parses an IP address.
func address(s string) (netip.Addr, *Error) {
	a, err := netip.ParseAddr(s)
	if err != nil || mesh.CheckHost(a) != nil {
		return netip.Addr{}, wrong(quote(s)+" is not a usable IP address", "write one such as 10.43.0.10")
	}
	return a.Unmap(), nil
}

// network parses a range of addresses.
func network(s string) (netip.Prefix, *Error) {
	p, err := prefix(s, 16, 48, "10.42.0.0/16 or fd00:42::/48")
	if err != nil {
		return p, err
	}
	if p != p.Masked() {
		return netip.Prefix{}, wrong(fmt.Sprintf("%v has host bits set", p), fmt.Sprintf("write %v", p.Masked()))
	}
	if err := mesh.CheckNetwork(p); err != nil {
		return netip.Prefix{}, wrong(fmt.Sprintf("%v can't be used: %v", p, err), "write another range, or a smaller one")
	}
	return p, nil
}

// internalIP parses a host's address with the length of its network, or none.
func internalIP(s string) (netip.Prefix, *Error) {
	if s == "none" {
		return mesh.NoInternalIP(), nil
	}
	p, err := prefix(s, 24, 64, "192.168.10.1/24 or fd12::1/64, or none")
	switch {
	case err != nil:
		return p, err
	case mesh.CheckHost(p.Addr()) != nil:
		return netip.Prefix{}, wrong(fmt.Sprintf("%v is not an address on a private network", p.Addr()), "write the node's own, such as 192.168.10.1/24")
	case mesh.CheckInternalIP(p) != nil:
		return netip.Prefix{}, wrong(fmt.Sprintf("%v can't be used: %v", p, mesh.CheckInternalIP(p)), "write the length of the node's own network, as `ip address` shows it")
	case p == p.Masked() && p.Addr().BitLen()-p.Bits() > 1:
		return netip.Prefix{}, wrong(fmt.Sprintf("%v is a network", p), fmt.Sprintf("write the node's own address in it, such as %v/%d", p.Addr().Next(), p.Bits()))
	}
	return p, nil
}

// prefix parses address/length. The lengths for IPv4 and IPv6 and the examples are used
// only in advice.
func prefix(s string, bits4, bits6 int, examples string) (netip.Prefix, *Error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && !p.Addr().Is4In6() {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		bits := bits4
		if a.Is6() {
			bits = bits6
		}
		return netip.Prefix{}, wrong(s+" has no prefix length", fmt.Sprintf("write %v/%d, if that is its network's", a, bits))
	}
	return netip.Prefix{}, wrong(quote(s)+" is not an address with a prefix length", "write one such as "+examples)
}
