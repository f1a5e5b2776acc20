// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are files and directories below the kernel directory of a
// release's modules. What they depend on comes with them, so a directory too
// many costs only room.
var wantedModules = []string{
	"arch/x86/crypto", "crypto",
	"drivers/char/virtio_console.ko", "drivers/virtio",
	"drivers/net/bonding", "drivers/net/dummy.ko", "drivers/net/ifb.ko", "drivers/net/nlmon.ko", "drivers/net/tun.ko", "drivers/net/veth.ko",
	"drivers/net/vxlan", "drivers/net/wireguard",
	"fs/overlayfs",
	"net/802", "net/8021q", "net/bridge", "net/core", "net/ipv4", "net/ipv6", "net/llc", "net/netfilter", "net/sched", "net/xfrm",
}

// selectModules reads modules.dep(5), whose lines are "module: what it needs",
// and returns the paths, below the release's directory, of the wanted modules and
// of all that they need.
func selectModules(dep string) ([]string, error) {
	needs := map[string][]string{}
	for line := range strings.Lines(dep) {
		module, rest, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("read modules.dep: no colon in %q", line)
		}
		needs[module] = strings.Fields(rest)
	}
	selected := map[string]bool{}
	for _, want := range wantedModules {
		path := "kernel/" + want
		found := false
		for module, more := range needs {
			if module != path && !strings.HasPrefix(module, path+"/") {
				continue
			}
			found = true
			selected[module] = true
			for _, m := range more { // modules.dep has indirect ones, too
				selected[m] = true
			}
		}
		if !found {
			return nil, fmt.Errorf("select modules: the kernel has none at %s", want)
		}
	}
	var all []string
	for m := range selected {
		all = append(all, m)
	}
	slices.Sort(all)
	return all, nil
}

// addModules adds the selected modules and the indexes by which modprobe, and
// through it the kernel itself, finds them.
func addModules(a *archive, k kernel) error {
	dep, err := os.ReadFile(filepath.Join(k.modules(), "modules.dep"))
	if err != nil {
		return fmt.Errorf("find modules: %w", err)
	}
	paths, err := selectModules(string(dep))
	if err != nil {
		return err
	}
	indexes, err := filepath.Glob(filepath.Join(k.modules(), "modules.*"))
	if err != nil {
		return fmt.Errorf("find indexes of modules: %w", err)
	}
	for _, index := range indexes {
		paths = append(paths, filepath.Base(index))
	}
	for _, p := range paths {
		if err := a.copy(filepath.Join("/usr/lib/modules", k.release, p), filepath.Join(k.modules(), p)); err != nil {
			return err
		}
	}
	return nil
}
