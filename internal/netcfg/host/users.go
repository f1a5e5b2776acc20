// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Users names what uses the addresses that this node has from the mesh: links of pods on
// the bridge, and sockets of other programs at its overlay addresses. It returns nothing
// for addresses that can be changed without anybody's notice.
func (k *Kernel) Users(ctx context.Context, overlay []netip.Addr) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	links, err := k.podLinks()
	if err != nil {
		return nil, err
	}
	var users []string
	for _, name := range links {
		users = append(users, fmt.Sprintf("link %s on %s", name, k.bridge))
	}
	sockets, err := socketsAt(overlay)
	if err != nil {
		return nil, err
	}
	return append(users, sockets...), ctx.Err()
}

// PodLinks returns the names of the links on the CNI bridge, sorted. Each pod that is not in the
// host's network has one.
func (k *Kernel) PodLinks() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.podLinks()
}

func (k *Kernel) podLinks() ([]string, error) {
	links, err := retryInterrupted(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, bridge := range links {
		if bridge.Attrs().Name != k.bridge {
			continue
		}
		for _, l := range links {
			if l.Attrs().MasterIndex == bridge.Attrs().Index {
				names = append(names, l.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// socketsAt lists the sockets of other processes that are bound to one of the addresses,
// connections among them, see usersOf.
func socketsAt(addrs []netip.Addr) ([]string, error) {
	own, err := ownSockets()
	if err != nil {
		return nil, err
	}
	var all []socket
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open("/proc/self/net/" + protocol)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		sockets, err := parseSockets(f, strings.TrimSuffix(protocol, "6"))
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("list sockets in /proc/self/net/%s: %w", protocol, err)
		}
		all = append(all, sockets...)
	}
	// A socket without an inode has no process any more, as in TIME_WAIT.
	all = slices.DeleteFunc(all, func(s socket) bool { return s.inode == 0 || own[s.inode] })
	return usersOf(all, addrs), nil
}

// usersOf describes the sockets that use one of the addresses. Sockets that only wait for
// packets are left out if there are such sockets with their port at addresses of the host
// outside of the mesh, too: NTP servers, BIND and Samba bind each address that the host has,
// and follow when one changes. Loopback addresses do not count for that: etcd binds the
// node's address and one of these.
func usersOf(sockets []socket, addrs []netip.Addr) []string {
	type port struct {
		protocol string
		number   uint16
	}
	elsewhere := make(map[port]bool)
	for _, s := range sockets {
		if a := s.local.Addr(); s.waits && !a.IsUnspecified() && !a.IsLoopback() && !slices.Contains(addrs, a) {
			elsewhere[port{s.protocol, s.local.Port()}] = true
		}
	}
	var out []string
	for _, s := range sockets {
		if slices.Contains(addrs, s.local.Addr()) && !(s.waits && elsewhere[port{s.protocol, s.local.Port()}]) {
			out = append(out, fmt.Sprintf("%s socket at %v", s.protocol, s.local))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownSockets returns the inodes of this process's sockets.
func ownSockets() (map[uint64]bool, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list own sockets: %w", err)
	}
	own := make(map[uint64]bool)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		number, ok := strings.CutPrefix(target, "socket:[")
		if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64); ok && err == nil {
			own[inode] = true
		}
	}
	return own, nil
}

// socket is one line of /proc/net/tcp and the like, see proc_net_tcp.rst in the kernel's
// documentation.
type socket struct {
	protocol string // tcp | udp
	local    netip.AddrPort
	waits    bool // it listens (TCP) or is not connected (UDP)
	inode    uint64
}

// The states of sockets that wait, as /proc/net shows them (tcp_states.h in the kernel).
const (
	stateClose  = "07" // of a UDP socket: not connected
	stateListen = "0A"
)

func parseSockets(r io.Reader, protocol string) ([]socket, error) {
	var out []socket
	lines := bufio.NewScanner(r)
	lines.Scan() // the header
	for lines.Scan() {
		// sl, local, remote, st, queues, timer, retrnsmt, uid, timeout, inode, …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return nil, fmt.Errorf("unknown line %q", lines.Text())
		}
		local, err := parseProcAddr(fields[1])
		if err != nil {
			return nil, err
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("inode: %w", err)
		}
		waits := fields[3] == stateListen || protocol == "udp" && fields[3] == stateClose
		out = append(out, socket{protocol, local, waits, inode})
	}
	return out, lines.Err()
}

// parseProcAddr parses 0100007F:0016, on a little-endian machine 127.0.0.1:22: the address
// is printed in words of 32 bits, each as this machine reads it.
func parseProcAddr(s string) (netip.AddrPort, error) {
	text, portText, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: %w", s, err)
	}
	for word := range slices.Chunk(b, 4) {
		if len(word) == 4 {
			binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
		}
	}
	a, ok := netip.AddrFromSlice(b)
	port, err := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
}
