DROP FUNCTION settled_elsewhere();
DROP TYPE state_row;
