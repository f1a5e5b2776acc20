// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

func TestLostQuorum(t *testing.T) {
	in := clusterIn(mesh.ModeFull, "aws gcp home home - -")
	records, alive := in.Records, make(map[mesh.ID]bool)
	ids := make(map[string]mesh.ID)
	for _, r := range records {
		ids[r.Name], alive[r.ID()] = r.ID(), true
	}
	for _, tt := range []struct {
		name                string
		servers, down, lost []string
		want                string
	}{
		{"one of three", []string{"aws-1", "gcp-1", "home-1"}, nil, []string{"home-1"}, ""},
		{"two of three", []string{"aws-1", "home-1", "home-2"}, nil, []string{"home-1", "home-2"}, "etcd loses its quorum, and k3s its API: 1 of 3 servers are left (aws-1), and 2 are needed"},
		{"one of three, and one is down", []string{"aws-1", "gcp-1", "home-1"}, []string{"gcp-1"}, []string{"home-1"}, "etcd loses its quorum, and k3s its API: 1 of 3 servers are left (aws-1), and 2 are needed"},
		{"one of two", []string{"aws-1", "home-1"}, nil, []string{"home-1"}, "etcd loses its quorum, and k3s its API: 1 of 2 servers are left (aws-1), and 2 are needed"},
		{"the only one", []string{"home-1"}, nil, []string{"home-1"}, "etcd loses its quorum, and k3s its API: 0 of 1 servers are left, and 1 are needed"},
		{"agents", []string{"aws-1"}, nil, []string{"home-1", "home-2"}, ""},
		{"agents, when the quorum is lost already", []string{"aws-1", "gcp-1"}, []string{"gcp-1"}, []string{"home-1"}, ""},
		{"no servers are known", nil, nil, []string{"home-1"}, ""},
	} {
		for i := range records {
			records[i].Etcd = ""
		}
		for i := range records {
			for _, name := range tt.servers {
				if records[i].Name == name {
					records[i].Etcd = mesh.EtcdWAN
				}
			}
		}
		reached := make(map[mesh.ID]bool)
		for id := range alive {
			reached[id] = true
		}
		for _, name := range tt.down {
			delete(reached, ids[name])
		}
		var lost []mesh.ID
		for _, name := range tt.lost {
			lost = append(lost, ids[name])
		}
		if got := mesh.LostQuorum(records, reached, lost); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
