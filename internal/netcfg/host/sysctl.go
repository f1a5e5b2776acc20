// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/meshd/meshd/internal/netcfg"
)

// sysctlRoot is the directory of kernel parameters. Everything below net belongs to the
// network namespace of the reader.
const sysctlRoot = "/proc/sys"

// errNoBridgeNetfilter means that bridged packets don't pass iptables because the kernel
// module br_netfilter can't be loaded. Pods of one node then reach Services without
// NetworkPolicy, or not at all. The mesh itself works, but the node does not come online.
var errNoBridgeNetfilter = errors.New("kernel module br_netfilter is missing (`modprobe br_netfilter`)")

// sysctlPath returns the file of a parameter. As in sysctl(8), a slash stands for a dot
// inside a name: net.ipv4.conf.eth0/100.rp_filter.
func sysctlPath(key string) string {
	return filepath.Join(sysctlRoot, strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key))
}

// observeSysctls reads the parameters in want. A parameter of a link that does not exist,
// such as a bridge that the CNI plugin has yet to create, is reported with its desired
// value, because there is nothing to set; so is one of IPv6 on a kernel without IPv6. Any
// other missing parameter is left out.
func observeSysctls(want []netcfg.Sysctl) ([]netcfg.Sysctl, error) {
	var got []netcfg.Sysctl
	for _, w := range want {
		b, err := os.ReadFile(sysctlPath(w.Key))
		switch {
		case err == nil:
			got = append(got, netcfg.Sysctl{Key: w.Key, Value: strings.TrimSpace(string(b))})
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read sysctl %s: %w", w.Key, err)
		case withoutIPv6(w.Key), withoutLink(w.Key):
			got = append(got, w)
		}
	}
	return got, nil
}

// withoutIPv6 reports whether the key is about IPv6 and the kernel has no IPv6.
func withoutIPv6(key string) bool {
	if !strings.HasPrefix(key, "net.ipv6.") {
		return false
	}
	_, err := os.Stat(sysctlPath("net.ipv6"))
	return errors.Is(err, fs.ErrNotExist)
}

// withoutLink reports whether the key is about a link that does not exist.
func withoutLink(key string) bool {
	conf, _, _ := strings.Cut(strings.TrimPrefix(key, "net."), ".")
	rest, ok := strings.CutPrefix(key, "net."+conf+".conf.")
	if !ok {
		return false
	}
	link, _, _ := strings.Cut(rest, ".")
	_, err := os.Stat(sysctlPath("net." + conf + ".conf." + link))
	return errors.Is(err, fs.ErrNotExist)
}

// SysctlError is an error about a parameter that can't be set.
type SysctlError struct {
	Key string
	err error
}

// sysctlError leaves the path out of the system's error: it is the key again, and what
// has one reason is one problem.
func sysctlError(key string, err error) *SysctlError {
	if p, ok := err.(*fs.PathError); ok {
		err = p.Err
	}
	return &SysctlError{key, err}
}

// Error implements error.
func (e *SysctlError) Error() string { return fmt.Sprintf("set sysctl %s: %v", e.Key, e.err) }

// Unwrap returns the system's error.
func (e *SysctlError) Unwrap() error { return e.err }

// setSysctl writes one parameter. An error is a SysctlError.
func (k *Kernel) setSysctl(ctx context.Context, s netcfg.Sysctl) error {
	if s == (netcfg.Sysctl{Key: "net.ipv6.conf.all.forwarding", Value: "1"}) {
		if err := k.keepRouterAdvertisements(); err != nil {
			return &SysctlError{s.Key, err}
		}
	}
	err := k.writeSysctl(s)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.Key, "net.bridge.") {
		if out, modErr := exec.CommandContext(ctx, "modprobe", "br_netfilter").CombinedOutput(); modErr != nil {
			return &SysctlError{s.Key, fmt.Errorf("%w: %w: %s", errNoBridgeNetfilter, modErr, strings.TrimSpace(string(out)))}
		}
		err = k.writeSysctl(s)
	}
	if err != nil {
		return sysctlError(s.Key, err)
	}
	return nil
}

func (k *Kernel) writeSysctl(s netcfg.Sysctl) error {
	k.writes.Add(1)
	// Open without O_CREATE: with it, /proc returns EACCES for a missing parameter.
	f, err := os.OpenFile(sysctlPath(s.Key), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.Value)
	return cmp.Or(err, f.Close())
}

// keepRouterAdvertisements lets the host continue to accept router advertisements when it
// becomes a router itself. With accept_ra = 1 the kernel deletes the default route it
// learned as soon as forwarding is on; with 2 it keeps the route
// (Documentation/networking/ip-sysctl.rst). Where accept_ra is off, it stays off.
func (k *Kernel) keepRouterAdvertisements() error {
	files, err := filepath.Glob(sysctlPath("net.ipv6.conf") + "/*/accept_ra")
	if err != nil {
		return fmt.Errorf("list accept_ra: %w", err)
	}
	var errs []error
	for _, f := range files {
		link := filepath.Base(filepath.Dir(f))
		b, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(b)) != "1" {
			continue // the link was just deleted, or has no such setting
		}
		key := "net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra"
		if err := k.writeSysctl(netcfg.Sysctl{Key: key, Value: "2"}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, sysctlError(key, err))
		}
	}
	return errors.Join(errs...)
}
