// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg/filter"
)

// legacy holds what differs in ip_tables between the families: where its tables are read,
// and the layout of an entry (struct ipt_entry, struct ip6t_entry).
type legacy struct {
	family   string
	names    string // file that lists the existing tables; unlike iptables -S, reading it creates none
	domain   int    // of the socket
	level    int    // of the socket's options
	offsets  int    // position of target_offset and next_offset, 16 bits each
	counters int    // position of the packet and byte counters, 64 bits each
}

var legacies = []legacy{
	{family: "ip", names: "/proc/thread-self/net/ip_tables_names", domain: unix.AF_INET, level: unix.SOL_IP, offsets: 88, counters: 96},
	{family: "ip6", names: "/proc/thread-self/net/ip6_tables_names", domain: unix.AF_INET6, level: unix.SOL_IPV6, offsets: 140, counters: 152},
}

// Options of a raw socket (IPT_BASE_CTL in ip_tables.h; the same in ip6_tables.h).
const (
	soGetInfo    = 64
	soGetEntries = 65
)

// legacyInfo is struct ipt_getinfo. Underflow holds, for each hook (enum nf_inet_hooks),
// the position of the entry with the chain's policy.
type legacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	NumEntries uint32
	Size       uint32
}

// observeLegacy reads the tables of ip_tables, if there are any.
func (k *Kernel) observeLegacy(ctx context.Context) ([]filter.Table, error) {
	var out []filter.Table
	for _, l := range legacies {
		// A kernel without ip_tables has no such file.
		names, err := os.ReadFile(l.names)
		if err != nil {
			continue
		}
		for _, name := range strings.Fields(string(names)) {
			if name != "filter" && name != "nat" {
				continue
			}
			t, err := k.legacyTable(ctx, l, name)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// legacyTable returns a table. It parses the table only if it has changed since the last
// time.
func (k *Kernel) legacyTable(ctx context.Context, l legacy, name string) (filter.Table, error) {
	entries, sum, err := l.entries(name)
	if err != nil {
		return filter.Table{}, err
	}
	key := l.family + " " + name
	known, ok := k.filters.legacy[key]
	if !ok || known.sum != sum {
		if known.table, err = l.read(ctx, entries, name); err != nil {
			return filter.Table{}, err
		}
		if k.filters.legacy == nil {
			k.filters.legacy = map[string]legacyRead{}
		}
		k.filters.legacy[key] = legacyRead{sum, known.table}
	}
	return known.table, nil
}

// legacyEntries are the entries of a table in the kernel's binary form.
type legacyEntries struct {
	legacyInfo
	data []byte
}

// entries reads a table and returns its hash too. The hash excludes the counters.
func (l legacy) entries(name string) (legacyEntries, [32]byte, error) {
	var e legacyEntries
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return e, [32]byte{}, fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd)
	// EAGAIN means that the table has grown between the two calls.
	for range dumpTries {
		copy(e.Name[:], name)
		if err = getsockopt(fd, l.level, soGetInfo, unsafe.Slice((*byte)(unsafe.Pointer(&e.legacyInfo)), unsafe.Sizeof(e.legacyInfo))); err != nil {
			break
		}
		// struct ipt_get_entries: name, size, and the entries from byte 40 on.
		const header = 40
		buf := make([]byte, header+int(e.Size))
		copy(buf, e.Name[:])
		binary.NativeEndian.PutUint32(buf[len(e.Name):], e.Size)
		if err = getsockopt(fd, l.level, soGetEntries, buf); !errors.Is(err, unix.EAGAIN) {
			e.data = buf[header:]
			break
		}
	}
	if err != nil {
		return e, [32]byte{}, fmt.Errorf("read table %s of %s: %w", name, filter.Legacy.Program(l.family), err)
	}
	return e, sha256.Sum256(l.withoutCounters(e.data)), nil
}

func (l legacy) withoutCounters(data []byte) []byte {
	data = slices.Clone(data)
	for at := 0; at+l.counters+16 <= len(data); {
		next := int(binary.NativeEndian.Uint16(data[at+l.offsets+2:]))
		clear(data[at+l.counters : at+l.counters+16])
		if next == 0 {
			break
		}
		at += next
	}
	return data
}

// getsockopt is needed because x/sys has no wrapper for options whose buffer is read and
// written.
func getsockopt(fd, level, option int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// read runs the program that prints the rules. If it is not installed, it returns only
// the policies.
func (l legacy) read(ctx context.Context, e legacyEntries, name string) (filter.Table, error) {
	program := filter.Legacy.Program(l.family)
	switch {
	case installed(program) != "":
	case name == "nat":
		return filter.Table{Backend: filter.Legacy, Family: l.family, Name: name}, nil
	default:
		return l.policies(e), nil
	}
	text, err := listRules(ctx, program, name)
	if err != nil {
		return filter.Table{}, err
	}
	t := filter.Parse(filter.Legacy, l.family, name, text)
	if name == "nat" {
		return t, nil
	}
	t.Program = program
	for name, chain := range t.Chains {
		for i, r := range chain.Rules {
			if strings.HasPrefix(r.Chain, kubernetesPrefix) {
				t.Chains[name].Rules[i].Action = filter.None
			}
		}
	}
	return t, nil
}

// policies returns a table with nothing but the policies of its chains. A policy is the
// verdict of the standard target (struct xt_standard_target), encoded as -1 minus
// netfilter's verdict.
func (l legacy) policies(e legacyEntries) filter.Table {
	t := filter.Table{Backend: filter.Legacy, Family: l.family, Name: "filter", Chains: map[string]filter.Chain{}}
	for hook, name := range map[int]string{unix.NF_INET_LOCAL_IN: "INPUT", unix.NF_INET_FORWARD: "FORWARD"} {
		const verdict = 32
		at := int(e.Underflow[hook])
		if at+l.offsets+2 > len(e.data) {
			continue
		}
		at += int(binary.NativeEndian.Uint16(e.data[at+l.offsets:])) + verdict
		if at+4 > len(e.data) {
			continue
		}
		drops := int32(binary.NativeEndian.Uint32(e.data[at:])) == -nfDrop-1
		t.Chains[name] = filter.Chain{Hook: strings.ToLower(name), Drops: drops}
	}
	return t
}

// nfDrop is netfilter's NF_DROP.
const nfDrop = 0

// listRules runs iptables to print a table, or one of its chains.
func listRules(ctx context.Context, program, table string, chain ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", lockWait, "-t", table, "-S"}, chain...)...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("run %s -S: %w: %s", program, err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("run %s -S: %w", program, err)
	}
	return string(out), nil
}
