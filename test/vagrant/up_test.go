// SPDX-License-Identifier: Apache-2.0

package vagrant

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// nodes are the Vagrantfile's machines, with their addresses in the mesh.
var nodes = []struct{ name, overlay string }{{"aws-1", "10.4.0.1"}, {"office-1", "10.4.0.2"}, {"office-2", "10.4.0.3"}}

// TestUp follows the head of the Vagrantfile: make deb, vagrant up, and three machines
// in two locations reach each other, nodes and pods.
func TestUp(t *testing.T) {
	h := start(t)
	dir := filepath.Join(h.dir, "project", "vagrant")
	text, err := os.ReadFile("../../vagrant/Vagrantfile")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "Vagrantfile"), string(text))
	deb := exec.Command("../../packaging/deb/build.sh")
	deb.Env = append(os.Environ(), "DIST="+filepath.Join(h.dir, "project", "dist"), "VERSION=1.0.0", "ARCHS=amd64")
	if out, err := deb.CombinedOutput(); err != nil {
		t.Fatalf("make the package: %v\n%s", err, out)
	}
	home := filepath.Join(h.dir, "home")
	addBox(t, home)

	env := []string{
		"VAGRANT_HOME=" + home, "VAGRANT_CHECKPOINT_DISABLE=1", "VAGRANT_DEFAULT_PROVIDER=libvirt",
		"LIBVIRT_DEFAULT_URI=qemu:///system", "QEMU=1", "BOX=" + boxName,
	}
	vagrant := func(args ...string) (string, error) { return h.try(dir, env, "vagrant", args...) }
	began := time.Now()
	out, err := vagrant("up")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	t.Logf("vagrant up took %v", time.Since(began).Round(time.Second))
	ssh := func(node, script string) (string, error) { return vagrant("ssh", node, "--no-tty", "-c", script) }

	pods := make([]string, len(nodes))
	for i, n := range nodes {
		h.eventually(t, n.name+" has its tunnels", func() error {
			out, err := ssh(n.name, "sudo meshd status -o json")
			if err != nil {
				return err
			}
			return whole(out, n.overlay)
		})
		out, err := ssh(n.name, addPod)
		if err != nil {
			t.Fatal(err)
		}
		pods[i] = strings.TrimSpace(out)
	}
	var pings []string
	for i, to := range nodes {
		for _, from := range []string{"", "sudo ip netns exec pod "} {
			for _, addr := range []string{to.overlay, pods[i]} {
				pings = append(pings, from+"ping -q -c 1 -W 5 "+addr)
			}
		}
	}
	for _, from := range nodes {
		h.eventually(t, from.name+" and its pod reach all nodes and pods", func() error {
			_, err := ssh(from.name, strings.Join(pings, " && "))
			return err
		})
	}
	if _, err := vagrant("destroy", "-f"); err != nil {
		t.Error(err)
	}
}

// whole returns an error that says what a node lacks, by its status.
func whole(out, overlay string) error {
	var s control.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return fmt.Errorf("read status: %w: %s", err, out)
	}
	if !lab.Ready(s) || s.Node.Overlay[0].String() != overlay || lab.TunnelsUp(s) != len(nodes)-1 {
		return fmt.Errorf("want %s, ready, and tunnels to %d others: %s", overlay, len(nodes)-1, out)
	}
	return nil
}

// addPod makes a network namespace a pod by the configuration that meshd has written,
// and prints its address.
const addPod = `set -e
	sudo ip netns add pod
	sudo ip -n pod link set lo up
	jq '{cniVersion, name} + .plugins[0]' /etc/cni/net.d/10-meshd.conflist |
		sudo env CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge |
		jq -r '.ips[0].address | split("/")[0]'`
