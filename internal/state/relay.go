// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"path/filepath"

	"github.com/meshd/meshd/internal/path"
)

// RelayFile is the name of the file in the run directory with what this node knows as a relay.
const RelayFile = "relay.cbor"

// LoadRelay returns what SaveRelay has written last into the run directory at dir, or nothing if
// there is no file. After an error the relay goes on without: the nodes bind again.
func LoadRelay(dir string) ([]path.Kept, error) {
	all, err := readSummed[path.Kept](filepath.Join(dir, RelayFile))
	if err != nil {
		return nil, fmt.Errorf("read what the relay knew: %w", err)
	}
	return all, nil
}

// SaveRelay replaces the file, and removes what killed processes have left of it. After an error
// the old file is still there.
func SaveRelay(dir string, all []path.Kept) error {
	data, err := encodeSummed(all)
	if err == nil {
		err = replaceFile(filepath.Join(dir, RelayFile), data)
	}
	if err != nil {
		return fmt.Errorf("keep what the relay knows: %w", err)
	}
	return nil
}
