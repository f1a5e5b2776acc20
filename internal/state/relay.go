// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/path"
)

// RelayFile is the name of the file in the run directory with what this node knows as a relay.
const RelayFile = "relay.cbor"

// LoadRelay returns what SaveRelay has written last into the run directory at dir, or nothing if
// there is no file. After an error the relay goes on without: the nodes bind again.
func LoadRelay(dir string) ([]path.Kept, error) {
	data, err := os.ReadFile(filepath.Join(dir, RelayFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what the relay knew: %w", err)
	}
	all, err := decodeRelay(data)
	if err != nil {
		return nil, fmt.Errorf("read what the relay knew: %s: %w", filepath.Join(dir, RelayFile), err)
	}
	return all, nil
}

// SaveRelay replaces the file, and removes what killed processes have left of it. After an error
// the old file is still there.
func SaveRelay(dir string, all []path.Kept) error {
	file := filepath.Join(dir, RelayFile)
	data, err := encodeSummed(all)
	if err == nil {
		err = os.MkdirAll(dir, dirMode)
	}
	if err == nil {
		err = removeLeftovers(file)
	}
	if err == nil {
		err = atomicfile.Write(file, data, fileMode)
	}
	if err != nil {
		return fmt.Errorf("keep what the relay knows: %w", err)
	}
	return nil
}

func decodeRelay(data []byte) (all []path.Kept, err error) {
	err = decodeSummed(data, &all)
	return all, err
}
